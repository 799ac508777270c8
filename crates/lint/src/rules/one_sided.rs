//! Half of what a connection needs.

use portcullis_core::model::{Direction, Peer, PortMatch};
use portcullis_core::net::Traffic;
use portcullis_core::program::End;
use portcullis_kube::Severity;

use crate::context::{Context, RuleRef};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "one-sided",
    severity: Severity::Warning,
    what: "A rule allows a connection at one end, and policies refuse it at the other, for all its pods.",
    why: "A connection needs egress at its source and ingress at its destination. Where both pods are \
          isolated, a rule at one end alone lets nothing through. A rule is reported only if it names \
          its peers and its ports by number, and none of its connections is allowed.",
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
        let ports = traffic(&rule);
        if ports.is_empty() {
            continue;
        }
        let subjects = known(context.subjects(rule.policy));
        for (i, peer) in rule.rule.peers.iter().enumerate().filter(|(_, peer)| named(peer)) {
            let peers = known(context.peers(rule.namespace, peer));
            let pairs = || {
                let each = subjects.iter().flat_map(|s| peers.iter().map(move |p| (*s, *p)));
                each.filter(|(subject, peer)| subject != peer)
            };
            let Some((subject, peer)) = pairs().next() else { continue };
            if pairs().any(|(s, p)| ports.iter().any(|t| far_end_allows(context, &rule, s, p, *t)))
            {
                continue;
            }
            let (far, verb) = match rule.direction {
                Direction::Ingress => (Direction::Egress, "may not call"),
                Direction::Egress => (Direction::Ingress, "does not admit"),
            };
            let (near_name, far_name) = (context.name(subject), context.name(peer));
            let message =
                format!("half a connection: {far_name} {verb} {near_name} on these ports");
            let preposition = if far == Direction::Egress { "to" } else { "from" };
            let help = format!("add an {far} rule for {far_name} {preposition} {near_name}");
            let finding = report.policy(rule.policy, rule.peer_path(i), message, help);
            for policy in context.isolating(peer, far).unwrap_or_default().iter().take(3) {
                finding.see(context, *policy as usize, "spec.podSelector");
            }
        }
    }
}

/// The ports of a rule, if it names them all by number.
fn traffic(rule: &RuleRef<'_>) -> Vec<Traffic> {
    let each = rule.rule.ports.iter().map(|port| match port.port {
        PortMatch::Range(first, last) => {
            Some([Traffic::Port(port.protocol, first), Traffic::Port(port.protocol, last)])
        }
        PortMatch::All | PortMatch::Named(_) => None,
    });
    let all: Option<Vec<_>> = each.collect();
    all.unwrap_or_default().into_iter().flatten().collect()
}

/// Whether the other end of a rule allows what the rule does.
fn far_end_allows(
    context: &Context<'_>,
    rule: &RuleRef<'_>,
    subject: usize,
    peer: usize,
    traffic: Traffic,
) -> bool {
    let (program, far) = (
        &context.program,
        match rule.direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        },
    );
    let (source, destination) = match rule.direction {
        Direction::Ingress => (peer, subject),
        Direction::Egress => (subject, peer),
    };
    program.paths(End::Pod(source), End::Pod(destination)).any(|path| {
        let (end, remote) = path.subject_and_remote(far);
        program.exempt(&path).is_some()
            || match program.isolation(end, far) {
                None => true,
                Some(rules) => program.allowing(rules, remote.identity, traffic).next().is_some(),
            }
    })
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
