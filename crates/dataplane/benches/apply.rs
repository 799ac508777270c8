//! How long the kernel takes to accept a state, by its size. In a user and network namespace.

use std::net::IpAddr;

use nix::sched::{CloneFlags, unshare};
use portcullis_core::net::{IpRange, Protocol};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Error, Nftables};

fn main() -> Result<(), Error> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        eprintln!("a user namespace is needed: {error}");
        std::process::exit(1);
    }
    println!(
        "{:34} {:>8} {:>8} {:>11} {:>9} {:>9} {:>9}",
        "state", "elements", "rules", "bytes", "first", "same", "hits"
    );
    for count in [1_000, 10_000, 100_000] {
        measure(&format!("1 profile, {count} policies of a pod"), &pods_on_a_port(count))?;
    }
    for count in [10_000, 100_000] {
        measure(&format!("1 profile, one set of {count}"), &large_set(count))?;
    }
    measure("1 profile, 1000 blocks with ports", &blocks(1000))?;
    measure("1 profile, 10000 blocks", &plain_blocks(10_000))?;
    measure("250 profiles of 20 entries", &profiles(250))
}

fn measure(name: &str, state: &NodeState) -> Result<(), Error> {
    let mut nftables = Nftables::open()?;
    let first = nftables.apply(state)?;
    let again = nftables.apply(state)?;
    let start = std::time::Instant::now();
    nftables.hits()?;
    let hits = start.elapsed();
    nftables.remove()?;
    println!(
        "{name:34} {:>8} {:>8} {:>11} {:>9.1?} {:>9.1?} {:>9.1?}",
        first.elements, first.rules, first.bytes, first.elapsed, again.elapsed, hits
    );
    Ok(())
}

fn pod(number: u32) -> IpAddr {
    IpAddr::V4((0x0a00_0000 + number).into())
}

fn tcp(first: u16, last: u16) -> Option<Ports> {
    Some(Ports { protocol: Protocol::Tcp, first, last })
}

fn one_profile(ingress: Vec<Entry>, peers: Vec<PeerSet>) -> NodeState {
    NodeState {
        endpoints: [(pod(1), 0)].into(),
        profiles: [(0, Profile { ingress: Some(ingress.into()), ..Profile::default() })].into(),
        peers: (0..).zip(peers).collect(),
        ..NodeState::default()
    }
}

/// Each policy allows one other pod on port 80.
fn pods_on_a_port(count: u32) -> NodeState {
    let entry = |n| Entry { peers: Some(n), ports: tcp(80, 80), origin: n };
    let peers =
        (0..count).map(|n| PeerSet::Addresses([pod(n + 2)].into_iter().collect())).collect();
    one_profile((0..count).map(entry).collect(), peers)
}

fn large_set(count: u32) -> NodeState {
    let peers = vec![PeerSet::Addresses((0..count).map(|n| pod(n + 2)).collect())];
    one_profile(vec![Entry { peers: Some(0), ports: None, origin: 0 }], peers)
}

/// Each block on a port range of its own.
fn blocks(count: u32) -> NodeState {
    let entry = |n: u32| {
        let port = 1000 + 10 * n as u16;
        Entry { peers: Some(n), ports: tcp(port, port + 9), origin: n }
    };
    let peers = (0..count).map(|n| PeerSet::Ranges([block(n)].into())).collect();
    one_profile((0..count).map(entry).collect(), peers)
}

fn plain_blocks(count: u32) -> NodeState {
    let entry = |n| Entry { peers: Some(n), ports: None, origin: n };
    let peers = (0..count).map(|n| PeerSet::Ranges([block(n)].into())).collect();
    one_profile((0..count).map(entry).collect(), peers)
}

fn block(number: u32) -> IpRange {
    IpRange { first: pod(number * 256), last: pod(number * 256 + 127) }
}

/// Each with 10 pods on two ports each way, DNS, and a block.
fn profiles(count: u32) -> NodeState {
    let profile = |n: u32| {
        let near = |first, last| {
            (0..4).map(move |i| Entry { peers: Some(n + i), ports: tcp(first, last), origin: n })
        };
        let block = Entry { peers: Some(count + 4), ports: tcp(443, 443), origin: n };
        let entries = near(80, 80).chain(near(8000, 8080)).chain([block]);
        Profile {
            ingress: Some(entries.clone().collect()),
            egress: Some(entries.collect()),
            ..Profile::default()
        }
    };
    let ten = |n: u32| PeerSet::Addresses((n * 10..n * 10 + 10).map(pod).collect());
    let outside = PeerSet::Ranges([block(60_000)].into());
    NodeState {
        endpoints: (0..count).map(|n| (pod(n * 10), n)).collect(),
        profiles: (0..count).map(|n| (n, profile(n))).collect(),
        peers: (0..).zip((0..count + 4).map(ten).chain([outside])).collect(),
        ..NodeState::default()
    }
}
