//! Addresses of the cluster itself, written as an `ipBlock`.

use std::net::IpAddr;

use portcullis_core::model::{Direction, IpBlock, Peer};
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "block-covers-cluster",
    severity: Severity::Warning,
    what: "An `ipBlock` is about addresses of Services or of pods.",
    why: "A policy sees a packet after the Service has been resolved, so the address of a Service never \
          comes by, and a block of such addresses allows nothing. A single address of a pod is another \
          pod's after the next restart. A range of Services is a note, and so is a large block of egress \
          that takes in pods beside the outside: it also allows what selectors elsewhere may be meant \
          to refuse.",
    example: "
# Service api: clusterIP 10.96.0.20
egress:
  - to:
      - ipBlock: {cidr: 10.96.0.20/32}
",
    fix: "Select the pods by labels; in a block for the outside, take out the addresses of the cluster \
          by `except`.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let cluster = &context.cluster;
    let pods: Vec<(usize, IpAddr)> = cluster.pods[..context.known]
        .iter()
        .enumerate()
        .filter(|(_, pod)| !pod.finished && !pod.host_network)
        .flat_map(|(i, pod)| pod.addresses.iter().map(move |address| (i, *address)))
        .collect();
    for rule in context.rules() {
        for (i, peer) in rule.rule.peers.iter().enumerate() {
            let Peer::Block(block) = peer else { continue };
            let path = format!("{}.ipBlock.cidr", rule.peer_path(i));
            let service = cluster.services.iter().find(|service| {
                service.cluster_ips.iter().any(|address| is_single(block, *address))
            });
            if let Some(service) = service {
                let name = format!("{}/{}", service.namespace, service.name);
                let message = format!(
                    "the address of Service {name}, which no policy ever sees: rules see that of the pod"
                );
                let help = match &service.selector {
                    Some(labels) => {
                        let labels: Vec<_> =
                            labels.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                        format!(
                            "select its pods: `podSelector: {{matchLabels: {{{}}}}}`",
                            labels.join(", ")
                        )
                    }
                    None => "write the addresses that are behind it".to_owned(),
                };
                report.policy(rule.policy, path, message, help);
                continue;
            }
            if let Some((pod, _)) = pods.iter().find(|(_, address)| is_single(block, *address)) {
                let name = context.name(*pod);
                let message = format!("the address of {name}: the next pod has another one");
                report.policy(rule.policy, path, message, "select the pod by its labels");
                continue;
            }
            let mut within: Vec<usize> = pods
                .iter()
                .filter(|(_, address)| block.contains(*address))
                .map(|(p, _)| *p)
                .collect();
            within.dedup();
            let service = cluster
                .services
                .iter()
                .find(|service| service.cluster_ips.iter().any(|address| block.contains(*address)));
            if let Some(service) = service.filter(|_| within.is_empty() && is_narrow(block)) {
                let name = format!("{}/{}", service.namespace, service.name);
                let message = format!(
                    "takes in Service {name}, whose address no policy ever sees: rules see that of the pod"
                );
                report.policy(rule.policy, path, message, "select the pods by their labels").note();
                continue;
            }
            if rule.direction == Direction::Egress && !within.is_empty() {
                let message =
                    format!("this block takes in pods: it also allows {}", context.names(&within));
                let help =
                    "if only the outside is meant, take the addresses of pods out by `except`";
                report.policy(rule.policy, path, message, help).note();
            }
        }
    }
}

/// Whether a block may be meant for the addresses of Services, and not for all there are.
fn is_narrow(block: &IpBlock) -> bool {
    block.cidr.prefix_len() >= if block.cidr.addr().is_ipv4() { 12 } else { 96 }
}

/// Whether a block is this address alone.
fn is_single(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr.prefix_len() == block.cidr.max_prefix_len() && block.cidr.addr() == address
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, notes, pod, policy};

    fn with(block: &str) -> String {
        let spec = format!(
            "  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:\n    - to: [{{ipBlock: {block}}}]"
        );
        let web = pod("shop", "web", "app: web", "");
        let web = web.trim_end().to_owned() + "\nstatus: {podIP: 10.0.0.7}\n";
        policy("web", &spec)
            + &web
            + "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.20, selector: {app: web}}\n"
    }

    #[test]
    fn the_address_of_a_service_or_of_a_pod_is_found() {
        let service = with("{cidr: 10.96.0.20/32}");
        assert_eq!(found(&service), ["10:29 block-covers-cluster"]);
        let help = "select its pods: `podSelector: {matchLabels: {app: web}}`";
        assert!(findings(&service).iter().any(|f| f.help == help));
        assert_eq!(found(&with("{cidr: 10.0.0.7/32}")), ["10:29 block-covers-cluster"]);
    }

    #[test]
    fn a_range_of_services_gets_a_note() {
        let range = with("{cidr: 10.96.0.0/16}");
        assert!(notes(&range).contains(&"10:29 block-covers-cluster".to_owned()));
        assert!(!notes(&with("{cidr: 10.97.0.0/16}")).iter().any(|n| n.contains("covers")));
    }

    #[test]
    fn a_large_block_of_egress_that_takes_in_pods_gets_a_note() {
        let rule = "block-covers-cluster";
        let noted = |block: &str| notes(&with(block)).iter().any(|n| n.ends_with(rule));
        assert!(noted("{cidr: 0.0.0.0/0}"));
        assert!(!noted("{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}"));
        assert!(!noted("{cidr: 192.0.2.0/24}"));
        assert!(!found(&with("{cidr: 0.0.0.0/0}")).iter().any(|n| n.ends_with(rule)));
    }
}
