//! Random states and packets, from small pools so that they meet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::net::{Family, IpRange, Protocol};
use portcullis_dataplane::Packet;
use portcullis_dataplane::state::{Entry, Log, NodeState, PeerSet, Ports, Profile};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option::{of, weighted};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

/// The pools' highest address is the last of its family, so that the edge is met too.
const EDGE: u32 = 40;

fn v4(number: u32) -> IpAddr {
    let number = if number >= EDGE { u32::MAX - (number - EDGE) } else { 0x0a00_0000 + number };
    IpAddr::V4(number.into())
}

fn v6(number: u32) -> IpAddr {
    let base = 0xfd00_u128 << 112;
    let far = number >= EDGE;
    let number = u128::from(number);
    IpAddr::V6(if far { u128::MAX - (number - u128::from(EDGE)) } else { base + number }.into())
}

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    let number = prop_oneof![8 => 0..12u32, 1 => EDGE..EDGE + 2];
    (any::<bool>(), number).prop_map(|(four, number)| if four { v4(number) } else { v6(number) })
}

fn range() -> impl Strategy<Value = IpRange> {
    (address(), address()).prop_map(|(a, b)| {
        let b = if Family::of(a) == Family::of(b) { b } else { a };
        IpRange { first: a.min(b), last: a.max(b) }
    })
}

/// Sorted, and none overlaps the next.
fn disjoint(mut ranges: Vec<IpRange>) -> Vec<IpRange> {
    ranges.sort();
    let mut kept: Vec<IpRange> = Vec::new();
    for range in ranges {
        if kept.last().is_none_or(|last| last.last < range.first) {
            kept.push(range);
        }
    }
    kept
}

fn peers() -> impl Strategy<Value = PeerSet> {
    let small = btree_set(address(), 0..6);
    // More than is copied: a shared set.
    let large = (0..12u32, btree_set(address(), 0..3)).prop_map(|(start, more)| {
        let many = (start..start + 520).filter(|n| !(EDGE..EDGE + 2).contains(n));
        many.map(|n| IpAddr::V4((0x0a00_0000 + n).into())).chain(more).collect::<BTreeSet<_>>()
    });
    let addresses = prop_oneof![4 => small, 1 => large];
    prop_oneof![
        2 => addresses.prop_map(|addresses| PeerSet::Addresses(addresses.into_iter().collect())),
        1 => vec(range(), 0..4).prop_map(|ranges| PeerSet::Ranges(disjoint(ranges).into())),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![6 => 1..8u16, 1 => select(vec![0, 65534, 65535])]
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = prop_oneof![
        3 => port().prop_map(|port| (port, port)),
        3 => (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b))),
        1 => Just((0, u16::MAX)),
    ];
    (select(Protocol::ALL.to_vec()), range).prop_map(|(protocol, (first, last))| Ports {
        protocol,
        first,
        last,
    })
}

fn direction(peers: u32, origins: u32) -> impl Strategy<Value = Option<Vec<Entry>>> {
    let entry = (weighted(0.85, 0..peers), weighted(0.7, ports()), 0..origins)
        .prop_map(|(peers, ports, origin)| Entry { peers, ports, origin });
    weighted(0.8, vec(entry, 0..14))
}

/// A state that is valid.
pub(crate) fn state() -> impl Strategy<Value = NodeState> {
    (vec(peers(), 1..14), 1..9u32, 1..4usize).prop_flat_map(|(peers, origins, profiles)| {
        let count = peers.len() as u32;
        let rules = || direction(count, origins).prop_map(|rules| rules.map(Into::into));
        let audit = || weighted(0.2, Just(())).prop_map(|audit| audit.is_some());
        let profile = (rules(), rules(), audit(), audit()).prop_map(
            |(ingress, egress, audit_ingress, audit_egress)| Profile {
                audit_ingress: audit_ingress && ingress.is_some(),
                audit_egress: audit_egress && egress.is_some(),
                ingress,
                egress,
            },
        );
        let nothing_refused = weighted(0.05, Just(())).prop_map(|audit| audit.is_some());
        let endpoints = btree_map(address(), 0..profiles as u32, 0..6);
        let log = of((0..9u16, 1..500u32).prop_map(|(group, rate)| Log { group, rate }));
        let whole = (log, nothing_refused);
        (endpoints, vec(range(), 0..3), vec(profile, profiles), whole).prop_map(
            move |(endpoints, ranges, profiles, (log, audit))| NodeState {
                audit,
                endpoints: endpoints.into(),
                ranges,
                log,
                profiles: (0..).zip(profiles).collect(),
                peers: (0..).zip(peers.clone()).collect(),
                ..NodeState::default()
            },
        )
    })
}

/// The first packet of a connection within one family.
#[allow(dead_code, reason = "the kernel's tests send real ones")]
pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    let kind = prop_oneof![
        6 => (select(vec![6, 17, 132]), port().prop_map(Some)),
        1 => (select(vec![1, 58, 47]), Just(None)),
    ];
    (address(), address(), kind, 40..1500u64).prop_map(
        |(source, destination, (protocol, port), bytes)| {
            let same = Family::of(source) == Family::of(destination);
            let destination = if same { destination } else { source };
            Packet { source, destination, protocol, port, bytes }
        },
    )
}
