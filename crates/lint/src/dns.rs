//! Whether pods that are isolated for egress can resolve names: on all their policies together.

use std::collections::BTreeMap;

use portcullis_core::model::{Direction, Peer, PortMatch, Rule};
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::program::End;

use crate::context::{Context, RuleRef};
use crate::rules::pod_label;

/// The ports that resolvers listen on: 53, and what stands behind a Service where they may not.
const PORTS: [u16; 3] = [53, 5353, 1053];

/// Pods that the same policies isolate for egress, and how they fare.
#[derive(Debug)]
pub(crate) struct Resolution<'a> {
    pub(crate) pods: Vec<usize>,
    /// Every egress rule of their policies.
    pub(crate) rules: Vec<RuleRef<'a>>,
    /// Whether DNS is allowed over UDP: to the DNS pods, or to something that may be a resolver.
    pub(crate) udp: bool,
    /// The same over TCP, or at least a rule means to.
    pub(crate) tcp: bool,
}

/// All pods that are isolated for egress, by the policies that do it.
pub(crate) fn resolutions<'a>(context: &'a Context<'_>) -> Vec<Resolution<'a>> {
    let mut by_policies: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
    for pod in 0..context.cluster.pods.len() {
        if let Some(policies) = context.isolating(pod, Direction::Egress) {
            by_policies.entry(policies).or_default().push(pod);
        }
    }
    let egress: Vec<RuleRef<'_>> =
        context.rules().filter(|rule| rule.direction == Direction::Egress).collect();
    let mut of_policy: BTreeMap<usize, Vec<RuleRef<'_>>> = BTreeMap::new();
    for rule in egress {
        of_policy.entry(rule.policy).or_default().push(rule);
    }
    let resolution = |(policies, pods): (&[u32], Vec<usize>)| {
        let rules = policies.iter().filter_map(|p| of_policy.get(&(*p as usize))).flatten();
        let rules: Vec<RuleRef<'_>> = rules.copied().collect();
        let allowed = |protocol| {
            reaches_dns(context, pods[0], protocol)
                || rules.iter().any(|rule| reaches_a_resolver(context, rule, protocol))
        };
        let means = |protocol| rules.iter().any(|rule| lists_dns(rule.rule, protocol).is_some());
        let udp = allowed(Protocol::Udp);
        let tcp = means(Protocol::Tcp) || allowed(Protocol::Tcp);
        Resolution { udp, tcp, pods, rules }
    };
    by_policies.into_iter().map(resolution).collect()
}

/// The index of the port by which a rule speaks of DNS over this protocol.
pub(crate) fn lists_dns(rule: &Rule, protocol: Protocol) -> Option<usize> {
    rule.ports.iter().position(|port| {
        port.protocol == protocol
            && match &port.port {
                PortMatch::All => false,
                PortMatch::Range(first, last) => PORTS.iter().any(|p| (first..=last).contains(&p)),
                PortMatch::Named(name) => name.starts_with("dns"),
            }
    })
}

/// Whether a pod may call the DNS pods, as far as its own egress goes.
fn reaches_dns(context: &Context<'_>, pod: usize, protocol: Protocol) -> bool {
    let program = &context.program;
    let endpoints = |pod| program.endpoints(End::Pod(pod)).into_iter().flatten();
    endpoints(pod).any(|subject| {
        let Some(rules) = program.isolation(&subject, Direction::Egress) else { return true };
        context.dns.iter().any(|dns| {
            endpoints(*dns).any(|remote| {
                dns_ports(context, *dns, protocol).into_iter().any(|port| {
                    let traffic = Traffic::Port(protocol, port);
                    program.allowing(rules, remote.identity, traffic).next().is_some()
                })
            })
        })
    })
}

/// The ports on which a DNS pod answers.
pub(crate) fn dns_ports(context: &Context<'_>, pod: usize, protocol: Protocol) -> Vec<u16> {
    let declared = context.cluster.pods[pod].ports.iter().filter(|port| {
        let named = port.name.as_deref().is_some_and(|name| name.starts_with("dns"));
        port.protocol == protocol && (named || PORTS.contains(&port.port))
    });
    let ports: Vec<u16> = declared.map(|port| port.port).collect();
    if ports.is_empty() { vec![53] } else { ports }
}

/// Whether a rule allows DNS to something that may be a resolver of its own: an address, or pods
/// that are none of the known DNS pods.
fn reaches_a_resolver(context: &Context<'_>, rule: &RuleRef<'_>, protocol: Protocol) -> bool {
    let lists = lists_dns(rule.rule, protocol).is_some();
    let any_port = rule.rule.ports.is_empty();
    rule.rule.peers.iter().any(|peer| match peer {
        Peer::Block(_) => lists || any_port,
        Peer::Pods { namespaces, .. } => {
            let mistaken = namespaces.as_ref().is_some_and(|n| pod_label(context, n).is_some());
            let real = context.peers(rule.namespace, peer);
            lists
                && !mistaken
                && !real.iter().any(|p| context.is_known(*p) && context.dns.contains(p))
        }
    })
}
