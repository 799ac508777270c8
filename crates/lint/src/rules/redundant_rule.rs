//! A rule that others make needless.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::labels::Selector;
use portcullis_core::model::{Direction, Peer, PortMatch, PortRule, Rule as PolicyRule};
use portcullis_core::net::{IpNet, Protocol, Traffic, next_address};
use portcullis_core::program::{End, Entry, IdentityId};
use portcullis_kube::Severity;

use crate::context::{Context, RuleRef};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "redundant-rule",
    severity: Severity::Warning,
    what: "Everything that a rule allows, other rules allow too.",
    why: "Removing it would change nothing, so either it is left over, or one of the others is wider \
          than was meant. Equal rules of one policy are a warning. A rule that one other covers for any \
          pods there may be is a note, and so is one that others cover together for the pods of this \
          input and for all addresses outside: with other pods it may be needed.",
    example: "
ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
  - from: [{podSelector: {matchLabels: {app: web}}}]
",
    fix: "Remove the rule, or narrow the one that covers it.",
    whole: true,
    check,
};

/// Policy, direction and index: what names a rule.
type RuleId = (usize, Direction, usize);

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let covered = covered_for_any_pod(context);
    for ((policy, direction, index), (by, equal)) in &covered {
        let path = format!("spec.{direction}[{index}]");
        let other = format!("spec.{}[{}]", by.1, by.2);
        let of = if by.0 == *policy {
            String::new()
        } else {
            format!(" of networkpolicy {}", context.cluster.policies[by.0].name)
        };
        let (message, help) = match equal {
            true => (format!("the same as {other}{of}, for any pod"), "remove one of the two"),
            false => (
                format!("{other}{of} allows all of this, for any pod"),
                "remove this rule, or narrow the other",
            ),
        };
        let finding = report.policy(*policy, path, message, help);
        if !equal || by.0 != *policy {
            finding.note();
        }
        finding.see(context, by.0, &other);
    }
    for (id, covering) in redundant(context) {
        if covered.contains_key(&id) {
            continue;
        }
        let (policy, direction, index) = id;
        let path = format!("spec.{direction}[{index}]");
        let message = "for these pods, other rules allow everything that this one does";
        let help = "remove it, or narrow the rules that cover it";
        let finding = report.policy(policy, path, message, help).note();
        for (policy, direction, index) in covering {
            finding.see(context, policy, &format!("spec.{direction}[{index}]"));
        }
    }
}

/// The rules that one other rule makes needless whatever pods there are, with that rule and whether
/// the two are equal. Of equal ones the later is needless.
fn covered_for_any_pod(context: &Context<'_>) -> BTreeMap<RuleId, (RuleId, bool)> {
    let mut of_section: BTreeMap<(&str, Direction), Vec<RuleRef<'_>>> = BTreeMap::new();
    for rule in context.rules() {
        of_section.entry((rule.namespace, rule.direction)).or_default().push(rule);
    }
    let id = |rule: &RuleRef<'_>| (rule.policy, rule.direction, rule.index);
    let mut covered = BTreeMap::new();
    for rules in of_section.values() {
        for (i, rule) in rules.iter().enumerate() {
            let others = rules.iter().enumerate().filter_map(|(j, other)| {
                let (policy, by) = (&context.cluster.policies[rule.policy], other.policy);
                let subject = &context.cluster.policies[by].subject;
                if i == j || !wider(subject, &policy.subject) || !covers(other.rule, rule.rule) {
                    return None;
                }
                let back = wider(&policy.subject, subject) && covers(rule.rule, other.rule);
                (!back || j < i).then_some((id(other), back))
            });
            // That a rule is there twice says more than that another is wider.
            let twice = |(by, equal): &(RuleId, bool)| *equal && by.0 == rule.policy;
            if let Some(by) = others.min_by_key(|by| !twice(by)) {
                covered.insert(id(rule), by);
            }
        }
    }
    covered
}

/// Whether a rule allows all that another does, for the same subjects.
fn covers(wide: &PolicyRule, narrow: &PolicyRule) -> bool {
    let peer = |narrow: &Peer| wide.peers.iter().any(|wide| peer_covers(wide, narrow));
    let port = |narrow: &PortRule| wide.ports.iter().any(|wide| port_covers(wide, narrow));
    let all_of = |wide_is_all: bool, narrow_is_all: bool| wide_is_all || !narrow_is_all;
    all_of(wide.peers.is_empty(), narrow.peers.is_empty())
        && all_of(wide.ports.is_empty(), narrow.ports.is_empty())
        && (wide.peers.is_empty() || narrow.peers.iter().all(peer))
        && (wide.ports.is_empty() || narrow.ports.iter().all(port))
}

fn peer_covers(wide: &Peer, narrow: &Peer) -> bool {
    match (wide, narrow) {
        (
            Peer::Pods { pods: wide_pods, namespaces: wide_namespaces },
            Peer::Pods { pods, namespaces },
        ) => {
            let everything = Selector::default();
            let all = |selector: &Option<Selector>| selector.clone().unwrap_or_default();
            let namespaces = match (wide_namespaces, namespaces) {
                (None, None) => true,
                (None, Some(_)) => false,
                (Some(wide), None) => *wide == everything,
                (Some(wide), Some(narrow)) => wider(wide, narrow),
            };
            namespaces && wider(&all(wide_pods), &all(pods))
        }
        (Peer::Block(wide), Peer::Block(narrow)) => {
            let left_out = |hole: &IpNet| {
                narrow.except.iter().any(|e| e.contains(hole))
                    || !hole.contains(&narrow.cidr) && !narrow.cidr.contains(hole)
            };
            wide.cidr.contains(&narrow.cidr) && wide.except.iter().all(left_out)
        }
        _ => false,
    }
}

fn port_covers(wide: &PortRule, narrow: &PortRule) -> bool {
    wide.protocol == narrow.protocol
        && match (&wide.port, &narrow.port) {
            (PortMatch::All, _) => true,
            (PortMatch::Range(first, last), PortMatch::Range(from, to)) => {
                first <= from && to <= last
            }
            (wide, narrow) => wide == narrow,
        }
}

/// Whether a selector asks for nothing that the other does not ask for.
fn wider(wide: &Selector, narrow: &Selector) -> bool {
    wide.match_labels.iter().all(|(key, value)| narrow.match_labels.get(key) == Some(value))
        && wide.match_expressions.iter().all(|r| narrow.match_expressions.contains(r))
}

/// The rules that could be removed, one after the other from the last, and what then still allows
/// the same. A rule that allows nothing at all is not among them.
fn redundant(context: &Context<'_>) -> Vec<(RuleId, BTreeSet<RuleId>)> {
    // Each set is what allows some connection: of one of them there must always be one left.
    let sets = allowing_sets(context);
    let mut of_rule: BTreeMap<RuleId, Vec<&Vec<RuleId>>> = BTreeMap::new();
    for set in &sets {
        for rule in set {
            of_rule.entry(*rule).or_default().push(set);
        }
    }
    let mut removed: BTreeSet<RuleId> = BTreeSet::new();
    let mut found = Vec::new();
    for (rule, sets) in of_rule.iter().rev() {
        let others = |set: &&Vec<RuleId>| {
            set.iter().find(|other| *other != rule && !removed.contains(other)).copied()
        };
        let covering: Option<BTreeSet<RuleId>> = sets.iter().map(others).collect();
        if let Some(covering) = covering {
            removed.insert(*rule);
            found.push((*rule, covering));
        }
    }
    found
}

/// For every class of subjects and remotes, and all traffic that rules can tell apart: the rules
/// that allow it, ascending. Exact, because entries only change at the points that are tried.
fn allowing_sets(context: &Context<'_>) -> BTreeSet<Vec<RuleId>> {
    let program = &context.program;
    let mut identities: BTreeSet<IdentityId> = BTreeSet::new();
    for pod in 0..context.cluster.pods.len() {
        identities.extend(program.endpoints(End::Pod(pod)).iter().flatten().map(|e| e.identity));
    }
    let mut edges = vec![[0, 0, 0, 0].into(), std::net::IpAddr::from([0u16; 8])];
    for entry in program.rule_sets().iter().flat_map(|rules| &rules.entries) {
        for range in program.peer_block(entry.peer).into_iter().flatten() {
            edges.push(range.first);
            edges.extend(next_address(range.last));
        }
    }
    edges.sort_unstable();
    edges.dedup();
    identities.extend(edges.into_iter().map(|address| program.endpoint(address).identity));

    let mut sets = BTreeSet::new();
    for rules in program.rule_sets() {
        // Remotes that the same entries are about differ in nothing here.
        let about = identities.iter().map(|identity| program.about(rules, *identity).collect());
        for entries in about.collect::<BTreeSet<Vec<Entry>>>() {
            for traffic in points(&entries) {
                let allowing = entries.iter().filter(|entry| entry.covers(traffic));
                let mut set: Vec<RuleId> = allowing
                    .map(|entry| {
                        let origin = entry.origin;
                        (origin.policy as usize, origin.direction, origin.rule as usize)
                    })
                    .collect();
                set.sort_unstable();
                set.dedup();
                if !set.is_empty() {
                    sets.insert(set);
                }
            }
        }
    }
    sets
}

/// Traffic by which entries can be told apart.
fn points(entries: &[Entry]) -> BTreeSet<Traffic> {
    let mut points = BTreeSet::from([Traffic::Other]);
    points.extend(Protocol::ALL.map(|protocol| Traffic::Port(protocol, 0)));
    for ports in entries.iter().filter_map(|entry| entry.ports) {
        points.insert(Traffic::Port(ports.protocol, ports.first));
        points.extend(ports.last.checked_add(1).map(|next| Traffic::Port(ports.protocol, next)));
    }
    points
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Source, load};
    use proptest::prelude::*;

    use super::*;
    use crate::fix::opens_the_same;
    use crate::testing::{findings, found, notes, pod, policy};

    const TWICE: &str = "  podSelector: {}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 80}]
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 80}]";

    #[test]
    fn equal_rules_of_one_policy_are_found_for_any_pods() {
        assert_eq!(found(&policy("api", TWICE)), ["11:7 redundant-rule"]);
        let there = policy("api", TWICE) + &pod("shop", "web", "app: web", "");
        assert_eq!(found(&there), ["11:7 redundant-rule"]);
        assert_eq!(findings(&there)[0].related[0].location.line, 9);
    }

    #[test]
    fn a_rule_that_is_covered_for_these_pods_gets_a_note() {
        let (first, second) = TWICE.split_at(TWICE.rfind("    - from").unwrap());
        let wide = format!(
            "{first}{}",
            second.replace("{app: web}", "{}").replace("[{port: 80}]", "[{port: 80, endPort: 90}]")
        );
        let yaml = policy("api", &wide) + &pod("shop", "web", "app: web", "");
        assert!(found(&yaml).is_empty());
        assert_eq!(notes(&yaml), ["9:7 redundant-rule"]);
    }

    #[test]
    fn a_rule_that_another_covers_for_any_pod_gets_a_note_that_says_so() {
        let narrow =
            "from: [{podSelector: {matchLabels: {app: web, tier: a}}}]\n      ports: [{port: 80}]";
        for wide in [
            "from: [{podSelector: {matchLabels: {app: web}}}]",
            "from: [{namespaceSelector: {}}]\n      ports: [{port: 80, endPort: 90}]",
            "ports: [{protocol: TCP}]",
        ] {
            let yaml = policy(
                "api",
                &format!("  podSelector: {{}}\n  ingress:\n    - {narrow}\n    - {wide}"),
            );
            assert!(found(&yaml).is_empty(), "{wide}");
            let finding = &findings(&yaml)[0];
            assert_eq!(finding.message, "spec.ingress[1] allows all of this, for any pod");
        }
        let wide = "  podSelector: {}\n  ingress: [{from: [{podSelector: {}}]}]";
        let other = policy(
            "web",
            &format!("  podSelector: {{matchLabels: {{app: b}}}}\n  ingress:\n    - {narrow}"),
        );
        let both = format!("{other}---\n{}", policy("all", wide));
        assert_eq!(notes(&both), ["9:7 redundant-rule"]);
        let blocks = "  podSelector: {}
  ingress:
    - from: [{ipBlock: {cidr: 10.1.0.0/16}}]
    - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}]";
        assert_eq!(notes(&policy("web", blocks)), ["9:7 redundant-rule"]);
        let hole = blocks.replace("10.2.0.0", "10.1.7.0").replace("0.0/16]", "0/24]");
        assert!(notes(&policy("web", &hole)).is_empty());
    }

    #[test]
    fn rules_that_differ_for_a_pod_a_port_or_an_address_are_silent() {
        let other_port = TWICE.replacen("port: 80", "port: 81", 1);
        let other_pod = TWICE.replacen("app: web", "app: shell", 1);
        let pods = pod("shop", "web", "app: web", "") + &pod("shop", "shell", "app: shell", "");
        for spec in [other_port, other_pod] {
            let yaml = policy("api", &spec) + &pods;
            assert!(found(&yaml).is_empty() && notes(&yaml).is_empty(), "{spec}");
        }
        let blocks = "  podSelector: {}
  ingress:
    - from: [{ipBlock: {cidr: 10.0.0.0/8}}]
    - from: [{ipBlock: {cidr: 10.0.0.0/7}}]
      ports: [{port: 80}]";
        assert!(notes(&policy("api", blocks)).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn without_the_rules_that_are_found_everything_is_as_it_was(
            policies in prop::collection::vec((0..3usize, any::<bool>(), prop::collection::vec((0..7usize, 0..5usize), 1..5)), 1..4),
        ) {
            let subjects = ["{}", "{matchLabels: {app: web}}", "{matchLabels: {app: api}}"];
            let peers = [
                "",
                "from: [{podSelector: {}}], ",
                "from: [{podSelector: {matchLabels: {app: web}}}], ",
                "from: [{podSelector: {matchLabels: {app: web, tier: a}}}], ",
                "from: [{namespaceSelector: {}}], ",
                "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}], ",
                "from: [{ipBlock: {cidr: 10.1.0.0/16}}, {podSelector: {matchLabels: {app: api}}}], ",
            ];
            let ports = [
                "",
                "ports: [{port: 80}]",
                "ports: [{port: 80, endPort: 90}]",
                "ports: [{protocol: TCP}]",
                "ports: [{port: 80}, {port: 80, protocol: UDP}]",
            ];
            let mut text = String::new();
            for (i, (subject, egress, rules)) in policies.into_iter().enumerate() {
                let rules = rules.into_iter().map(|(peer, port)| format!("{{{}{}}}", peers[peer], ports[port]));
                let rules = rules.collect::<Vec<_>>().join(", ");
                let section = match egress {
                    true => format!("policyTypes: [Egress]\n  egress: [{}]", rules.replace("from:", "to:")),
                    false => format!("policyTypes: [Ingress]\n  ingress: [{rules}]"),
                };
                let spec = format!("  podSelector: {}\n  {section}", subjects[subject]);
                text += &format!("{}---\n", policy(&format!("p{i}"), &spec));
            }
            text += &(pod("shop", "web", "app: web", "") + &pod("shop", "web-a", "app: web, tier: a", ""));
            text += &(pod("shop", "api", "app: api", "") + &pod("other", "web", "app: web", ""));
            let source = Source::Text { name: "all.yaml".to_owned(), text };
            let input = load(&[source], &Options::default());
            prop_assert!(!input.has_errors());
            let context = Context::new(&input);
            let without = |rules: &mut dyn Iterator<Item = RuleId>| {
                let mut cluster = input.cluster.clone();
                // From the last, so that indices stay what they are.
                let rules: BTreeSet<RuleId> = rules.collect();
                for (policy, direction, index) in rules.into_iter().rev() {
                    let policy = &mut cluster.policies[policy];
                    let section = match direction {
                        Direction::Ingress => &mut policy.ingress,
                        Direction::Egress => &mut policy.egress,
                    };
                    section.as_mut().unwrap().remove(index);
                }
                opens_the_same([&input.cluster, &cluster])
            };
            let covered = covered_for_any_pod(&context);
            prop_assert!(without(&mut covered.keys().copied()));
            let found = redundant(&context);
            prop_assert!(without(&mut found.iter().map(|(id, _)| *id)));
        }
    }
}
