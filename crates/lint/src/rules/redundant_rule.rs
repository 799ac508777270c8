//! A rule that others make needless.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::model::Direction;
use portcullis_core::net::{Protocol, Traffic, next_address};
use portcullis_core::program::{End, IdentityId, RuleSet};
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "redundant-rule",
    severity: Severity::Warning,
    what: "Everything that a rule allows, other rules allow too.",
    why: "Removing it would change nothing, so either it is left over, or one of the others is wider \
          than was meant. Equal rules of one policy are a warning, for any pods; a rule that is covered \
          by others for the pods of this input, and for all addresses outside, is a note: with other \
          pods it may be needed.",
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
    let equal = equal_rules(context);
    for ((policy, direction, index), first) in &equal {
        let path = format!("spec.{direction}[{index}]");
        let first = format!("spec.{direction}[{first}]");
        let message = format!("the same as {first}, for any pod");
        report
            .policy(*policy, path, message, "remove one of the two")
            .see(context, *policy, &first);
    }
    for (id, covering) in redundant(context) {
        if equal.contains_key(&id) {
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

/// Rules that are written twice in one policy, each with the index of the first.
fn equal_rules(context: &Context<'_>) -> BTreeMap<RuleId, usize> {
    let rules: Vec<_> = context.rules().collect();
    let mut equal = BTreeMap::new();
    for (i, rule) in rules.iter().enumerate() {
        let before = rules[..i].iter().rev();
        let same_section =
            before.take_while(|r| (r.policy, r.direction) == (rule.policy, rule.direction));
        if let Some(first) = same_section.filter(|r| r.rule == rule.rule).last() {
            equal.insert((rule.policy, rule.direction, rule.index), first.index);
        }
    }
    equal
}

/// The rules that could be removed, one after the other from the last, and what then still allows
/// the same. A rule that allows nothing at all is not among them.
fn redundant(context: &Context<'_>) -> Vec<(RuleId, BTreeSet<RuleId>)> {
    // Each set is what allows some connection: of one of them there must always be one left.
    let sets = allowing_sets(context);
    let rules: BTreeSet<RuleId> = sets.iter().flatten().copied().collect();
    let mut of_rule: BTreeMap<RuleId, Vec<&BTreeSet<RuleId>>> = BTreeMap::new();
    for set in &sets {
        for rule in set {
            of_rule.entry(*rule).or_default().push(set);
        }
    }
    let mut removed: BTreeSet<RuleId> = BTreeSet::new();
    let mut found = Vec::new();
    for rule in rules.into_iter().rev() {
        let others = |set: &BTreeSet<RuleId>| {
            set.iter().find(|other| **other != rule && !removed.contains(other)).copied()
        };
        let covering: Option<BTreeSet<RuleId>> =
            of_rule[&rule].iter().map(|set| others(set)).collect();
        if let Some(covering) = covering {
            removed.insert(rule);
            found.push((rule, covering));
        }
    }
    found
}

/// For every class of subjects and remotes, and all traffic that rules can tell apart: the rules
/// that allow it. Exact, because entries only change at the points that are tried.
fn allowing_sets(context: &Context<'_>) -> BTreeSet<BTreeSet<RuleId>> {
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
    identities.extend(edges.into_iter().map(|address| program.endpoint(address).identity));

    let mut sets = BTreeSet::new();
    for rules in program.rule_sets() {
        let points = points(rules);
        for identity in &identities {
            for traffic in &points {
                let allowing = program.allowing(rules, *identity, *traffic);
                let set: BTreeSet<RuleId> = allowing
                    .map(|entry| {
                        let origin = entry.origin;
                        (origin.policy as usize, origin.direction, origin.rule as usize)
                    })
                    .collect();
                if !set.is_empty() {
                    sets.insert(set);
                }
            }
        }
    }
    sets
}

/// Traffic by which the entries of a rule set can be told apart.
fn points(rules: &RuleSet) -> BTreeSet<Traffic> {
    let mut points = BTreeSet::from([Traffic::Other]);
    points.extend(Protocol::ALL.map(|protocol| Traffic::Port(protocol, 0)));
    for ports in rules.entries.iter().filter_map(|entry| entry.ports) {
        points.insert(Traffic::Port(ports.protocol, ports.first));
        points.extend(ports.last.checked_add(1).map(|next| Traffic::Port(ports.protocol, next)));
    }
    points
}

#[cfg(test)]
mod tests {
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
}
