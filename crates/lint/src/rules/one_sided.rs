//! Half of what a connection needs.

use std::collections::BTreeSet;

use portcullis_core::model::{Direction, Peer};
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Entry};
use portcullis_kube::Severity;

use crate::context::{Context, RuleRef};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "one-sided",
    severity: Severity::Warning,
    what: "A rule allows a connection at one end, and policies refuse it at the other, for all its pods.",
    why: "A connection needs egress at its source and ingress at its destination. Where both pods are \
          isolated, a rule at one end alone lets nothing through. A peer is reported only if it is named \
          by labels of pods, and nothing of what the rule allows is allowed at the other end.",
    example: "
# policy of web: allows egress to api on 8080
# policy of api: isolates for ingress and has no rule for web
",
    fix: "Add the other half: an ingress rule at the destination, or an egress rule at the source.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        let known = |pods: Vec<usize>| -> Vec<usize> {
            pods.into_iter().filter(|pod| context.is_known(*pod)).collect()
        };
        let named = |peer: &Peer| match peer {
            Peer::Pods { pods, .. } => pods.as_ref().is_some_and(|s| !s.is_empty()),
            Peer::Block(_) => false,
        };
        let subjects = known(context.subjects(rule.policy));
        for (i, peer) in rule.rule.peers.iter().enumerate().filter(|(_, peer)| named(peer)) {
            let peers = known(context.peers(rule.namespace, peer));
            let Some((subject, peer)) = refused(context, &rule, i, &subjects, &peers) else {
                continue;
            };
            let (far, verb) = match rule.direction {
                Direction::Ingress => (Direction::Egress, "may not call"),
                Direction::Egress => (Direction::Ingress, "does not admit"),
            };
            let (near_name, far_name) = (context.name(subject), context.name(peer));
            let on = if rule.rule.ports.is_empty() { "" } else { " on these ports" };
            let message = format!("half a connection: {far_name} {verb} {near_name}{on}");
            let preposition = if far == Direction::Egress { "to" } else { "from" };
            let help = format!("add an {far} rule for {far_name} {preposition} {near_name}");
            let finding = report.policy(rule.policy, rule.peer_path(i), message, help);
            for policy in context.isolating(peer, far).unwrap_or_default().iter().take(3) {
                finding.see(context, *policy as usize, "spec.podSelector");
            }
        }
    }
}

/// A subject and a peer of a rule, if the rule allows something between such pairs and the other
/// end refuses all of it, for every pair.
fn refused(
    context: &Context<'_>,
    rule: &RuleRef<'_>,
    peer_index: usize,
    subjects: &[usize],
    peers: &[usize],
) -> Option<(usize, usize)> {
    let program = &context.program;
    let (near, far) = match rule.direction {
        Direction::Ingress => (Direction::Ingress, Direction::Egress),
        Direction::Egress => (Direction::Egress, Direction::Ingress),
    };
    let of_rule = |entry: &Entry| {
        let origin = entry.origin;
        (origin.policy as usize, origin.direction) == (rule.policy, near)
            && origin.rule as usize == rule.index
            && origin.peer.map(|peer| peer as usize) == Some(peer_index)
    };
    let mut found = None;
    // Pods that fare alike are tried once.
    let mut tried = BTreeSet::new();
    for (subject, peer) in subjects.iter().flat_map(|s| peers.iter().map(move |p| (*s, *p))) {
        if subject == peer || !tried.insert((context.class(subject), context.class(peer))) {
            continue;
        }
        let (source, destination) = match rule.direction {
            Direction::Ingress => (peer, subject),
            Direction::Egress => (subject, peer),
        };
        for path in program.paths(End::Pod(source), End::Pod(destination)) {
            let allowed = |direction: Direction, of: &dyn Fn(&Entry) -> bool| {
                let (end, remote) = path.subject_and_remote(direction);
                let Some(rules) = program.isolation(end, direction) else {
                    return PortSet::Everything;
                };
                // What may be so is no mistake.
                let certain = program.about(rules, remote.identity);
                let doubtful = program.doubtful_of(rules, remote.identity, path.family());
                let entries = certain.chain(doubtful).filter(of);
                PortSet::of(entries.map(|entry| entry.ports))
            };
            let here = allowed(near, &of_rule);
            if here.is_nothing() {
                continue;
            }
            if !here.intersection(&allowed(far, &|_| true)).is_nothing() {
                return None;
            }
            found.get_or_insert((subject, peer));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    const EGRESS: &str = "  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {app: api}}}]
      ports: [{port: 8080}]
    - ports: [{port: 53, protocol: UDP}, {port: 53}]";

    fn with(api: &str) -> String {
        let pods = pod("shop", "web", "app: web", "") + &pod("shop", "api", "app: api", "");
        format!("{}---\n{}{pods}", policy("web", EGRESS), policy("api", api))
    }

    #[test]
    fn egress_that_the_other_end_refuses_is_found() {
        let closed = "  podSelector: {matchLabels: {app: api}}\n  policyTypes: [Ingress]";
        assert_eq!(found(&with(closed)), ["10:12 one-sided"]);
        let other_port = format!("{closed}\n  ingress: [{{ports: [{{port: 80}}]}}]");
        assert_eq!(found(&with(&other_port)), ["10:12 one-sided"]);
    }

    #[test]
    fn a_range_that_the_other_end_admits_a_part_of_is_silent() {
        let range = |first: u16, last: u16| {
            let pods = pod("shop", "web", "app: web", "") + &pod("shop", "api", "app: api", "");
            let ports = format!("[{{port: {first}, endPort: {last}}}]");
            let egress = EGRESS.replace("[{port: 8080}]", &ports);
            let ingress =
                "  podSelector: {matchLabels: {app: api}}\n  ingress: [{ports: [{port: 8050}]}]";
            found(&format!("{}---\n{}{pods}", policy("web", &egress), policy("api", ingress)))
        };
        assert!(range(8000, 8100).is_empty());
        assert_eq!(range(8000, 8049), ["10:12 one-sided"]);
    }

    #[test]
    fn a_rule_without_ports_is_found_if_the_other_end_admits_nothing() {
        let all = EGRESS.replace("\n      ports: [{port: 8080}]", "");
        let pods = pod("shop", "web", "app: web", "") + &pod("shop", "api", "app: api", "");
        let with = |ingress: &str| {
            let api = format!("  podSelector: {{matchLabels: {{app: api}}}}\n  ingress: {ingress}");
            let yaml = format!("{}---\n{}{pods}", policy("web", &all), policy("api", &api));
            found(&yaml).into_iter().filter(|f| f.ends_with(super::RULE.id)).collect::<Vec<_>>()
        };
        assert_eq!(with("[]"), ["10:12 one-sided"]);
        assert!(with("[{ports: [{port: 80}]}]").is_empty());
    }

    #[test]
    fn ends_that_are_open_or_agree_are_silent() {
        let agrees = "  podSelector: {matchLabels: {app: api}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 8080}]";
        assert!(found(&with(agrees)).is_empty());
        let open = "  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]";
        assert!(found(&with(open)).is_empty());
    }
}
