//! Addresses that several pods claim: oracle, engine and nodes agree on what becomes of them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::Program;
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_core::program::Effect;
use portcullis_tests::engine::cluster;
use portcullis_tests::generate::{Flow, Size, dispute, disputes, world};
use portcullis_tests::nodes::Nodes;
use portcullis_tests::oracle::{self, End};
use portcullis_tests::property::holds;
use proptest::prelude::*;

#[test]
fn all_agree_on_addresses_that_several_pods_claim() {
    // How often an end was claimed by several pods, and the connection passed, or not.
    let counts = [(); 2].map(|()| Cell::new(0));
    let size = Size { namespaces: 2, nodes: 2, pods: 6, policies: 5 };
    holds((world(size), disputes(), any::<u16>()), |(mut world, disputes, other)| {
        dispute(&mut world.cluster, &disputes);
        let program = Program::compile(&cluster(&world));
        let mut nodes = Nodes::program(&world).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let addresses = world.cluster.pods.iter().flat_map(|pod| &pod.addresses);
        let addresses =
            addresses.chain(world.cluster.nodes.iter().flat_map(|node| &node.addresses)).copied();
        let outside = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse::<IpAddr>().unwrap());
        let addresses: BTreeSet<IpAddr> = addresses.chain(outside).collect();
        let traffics = [(Protocol::Tcp, other % 100), (Protocol::Tcp, 80), (Protocol::Udp, 53)];
        let traffics = traffics.map(|(protocol, port)| Traffic::Port(protocol, port));
        for (source, destination) in
            addresses.iter().flat_map(|a| addresses.iter().map(move |b| (*a, *b)))
        {
            if Family::of(source) != Family::of(destination) {
                continue;
            }
            for traffic in traffics.into_iter().chain([Traffic::Other]) {
                let pods =
                    world.cluster.pods.iter().filter(|pod| !pod.host_network && !pod.finished);
                let claims = |a| pods.clone().filter(|pod| pod.addresses.contains(a)).count();
                let several = claims(&source) > 1 || claims(&destination) > 1;
                let what = format!("{source} -> {destination}, {traffic}");
                let allowed = oracle::passes(&world, source, destination, traffic);
                prop_assert_eq!(program.passes(source, destination, traffic), allowed, "{}", what);
                let count = &counts[usize::from(allowed)];
                count.set(count.get() + u32::from(several));
                let passes = oracle::lets_through(&world, source, destination, traffic);
                let effect = program.effect(source, destination, traffic);
                prop_assert_eq!(effect != Effect::Dropped, passes, "{}", what);
                let [source, destination] = [source, destination].map(End::Address);
                let opened = oracle::opened(&world, source, destination);
                let opened = opened.values().next().is_some_and(|o| o.contains(traffic));
                prop_assert_eq!(opened, allowed, "{}", what);
                let arrives = nodes.allowed(&Flow { source, destination, traffic });
                let arrives = arrives.and_then(|families| families.into_values().next());
                prop_assert_eq!(arrives, Some(passes), "{}", what);
            }
        }
        Ok(())
    });
    let [refused, passed] = counts.map(|count| count.get());
    assert!(refused > 100 && passed > 100, "{refused} refused and {passed} passed show little");
}
