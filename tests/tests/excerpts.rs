//! What an excerpt explains of two addresses is what the whole cluster explains.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::Program;
use portcullis_core::explain::{EndExplanation, explain};
use portcullis_core::incremental::NodeProgram;
use portcullis_core::model::Cluster;
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_core::program::{End, Origin};
use portcullis_tests::engine::cluster;
use portcullis_tests::generate::{Size, dispute, disputes, world};
use portcullis_tests::property::holds;
use proptest::prelude::*;

const NODE: &str = "node-1";

/// What is said of one end, with names instead of numbers.
fn said(cluster: &Cluster, end: &EndExplanation) -> String {
    let policy = |index: &u32| {
        let policy = &cluster.policies[*index as usize];
        format!("{}/{}", policy.namespace, policy.name)
    };
    let policies = |indices: &[u32]| indices.iter().map(policy).collect::<Vec<_>>();
    let place = |origin: &Origin| {
        format!("{} {} {}", policy(&origin.policy), origin.peer_path(), origin.port_path())
    };
    match end {
        EndExplanation::NoSubject => "no subject".to_owned(),
        EndExplanation::Open => "open".to_owned(),
        EndExplanation::Allowed { isolated_by, by } => {
            let by: Vec<_> = by.iter().map(place).collect();
            format!("{:?} allow by {by:?}", policies(isolated_by))
        }
        EndExplanation::Undetermined { .. } => "undetermined".to_owned(),
        EndExplanation::Refused { isolated_by, nearest, .. } => {
            let nearest = nearest.as_ref().map(|near| (place(&near.origin), &near.misses));
            format!("{:?} refuse, nearest {nearest:?}", policies(isolated_by))
        }
    }
}

#[test]
fn an_excerpt_says_of_local_ends_what_the_whole_cluster_says() {
    let size = Size { namespaces: 3, nodes: 2, pods: 8, policies: 5 };
    holds((world(size), disputes(), any::<u16>()), |(world, disputes, other)| {
        let mut cluster = cluster(&world);
        dispute(&mut cluster, &disputes);
        // What is said is in the order of names.
        cluster.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        cluster.policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        for pod in &mut cluster.pods {
            // An agent has heard of everything.
            cluster.namespaces.entry(pod.namespace.clone()).or_default();
            pod.node.get_or_insert_with(|| "elsewhere".to_owned());
            pod.ports_unknown = false;
        }
        let mut node = NodeProgram::new(NODE);
        for policy in &cluster.policies {
            node.policy(&policy.namespace, &policy.name, Some(policy.clone()));
        }
        for (name, labels) in &cluster.namespaces {
            node.namespace(name, Some(labels.clone()), None);
        }
        for known in &cluster.nodes {
            node.node(&known.name, Some(&known.addresses));
        }
        for pod in &cluster.pods {
            node.pod(&pod.namespace, &pod.name, Some(pod));
        }
        node.state();
        let program = Program::compile(&cluster);
        let addresses = cluster.pods.iter().flat_map(|pod| &pod.addresses);
        let addresses = addresses.chain(cluster.nodes.iter().flat_map(|node| &node.addresses));
        let mut addresses: BTreeSet<IpAddr> = addresses.copied().collect();
        addresses.extend(
            ["10.0.0.77", "192.0.2.1", "2001:db8::1"].map(|a| a.parse::<IpAddr>().unwrap()),
        );
        let traffics = [
            Traffic::Port(Protocol::Tcp, other % 100),
            Traffic::Port(Protocol::Udp, 53),
            Traffic::Other,
        ];
        for (source, destination) in
            addresses.iter().flat_map(|a| addresses.iter().map(move |b| (*a, *b)))
        {
            if Family::of(source) != Family::of(destination) || source == destination {
                continue;
            }
            let excerpt = node.excerpt(source, destination);
            if excerpt.local() == [false; 2] {
                continue;
            }
            let small = excerpt.cluster();
            let compiled = Program::compile(&small);
            for traffic in traffics {
                let ends = (End::Address(source), End::Address(destination));
                let whole = explain(&cluster, &program, ends.0, ends.1, traffic);
                let part = explain(&small, &compiled, ends.0, ends.1, traffic);
                prop_assert_eq!(whole.paths.len(), part.paths.len());
                for (whole, part) in whole.paths.iter().zip(&part.paths) {
                    let place = format!("{source} -> {destination} {traffic}: {excerpt:#?}");
                    if whole.exemption.is_some() {
                        // It stays on the node, and comes to no rule.
                        continue;
                    }
                    let [local_source, local_destination] = excerpt.local();
                    for (local, whole, part) in [
                        (local_source, &whole.egress, &part.egress),
                        (local_destination, &whole.ingress, &part.ingress),
                    ] {
                        if local {
                            let (whole, part) = (said(&cluster, whole), said(&small, part));
                            prop_assert_eq!(whole, part, "{}", place);
                        }
                    }
                }
            }
        }
        Ok(())
    });
}
