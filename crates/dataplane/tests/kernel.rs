//! The data plane against this machine's kernel, in user and network namespaces of its own.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use portcullis_core::net::{IpRange, Protocol};
use portcullis_dataplane::plan::{plan, render};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Nftables};

fn main() -> ExitCode {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).unwrap();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
    let addr = |s: &str| s.parse().unwrap();
    let port = |p, first, last| Some(Ports { protocol: p, first, last });
    let state = NodeState {
        endpoints: BTreeMap::from([
            (addr("10.0.0.1"), 0),
            (addr("fd00::1"), 0),
            (addr("10.0.0.2"), 1),
        ]),
        profiles: vec![
            Profile {
                ingress: Some(vec![
                    Entry { peers: Some(0), ports: port(Protocol::Tcp, 80, 80), origin: 0 },
                    Entry { peers: Some(0), ports: None, origin: 1 },
                    Entry { peers: Some(1), ports: None, origin: 2 },
                    Entry { peers: Some(1), ports: port(Protocol::Tcp, 80, 90), origin: 2 },
                    Entry { peers: None, ports: port(Protocol::Udp, 0, 65535), origin: 3 },
                ]),
                egress: Some(vec![]),
            },
            Profile {
                ingress: None,
                egress: Some(vec![Entry {
                    peers: None,
                    ports: port(Protocol::Udp, 53, 53),
                    origin: 3,
                }]),
            },
        ],
        peers: vec![
            PeerSet::Addresses(vec![addr("10.1.0.1"), addr("10.1.0.2"), addr("fd00::7")]),
            PeerSet::Ranges(vec![
                IpRange { first: addr("10.0.0.0"), last: addr("10.255.255.255") },
                IpRange { first: addr("11.0.0.0"), last: addr("11.255.255.255") },
                IpRange { first: addr("240.0.0.0"), last: addr("255.255.255.255") },
                IpRange {
                    first: addr("fd01::"),
                    last: addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
                },
            ]),
        ],
        origins: 4,
    };
    let mut nft = Nftables::open().unwrap();
    println!("{}", render(&plan(&state).unwrap()));
    println!("{:?}", nft.apply(&state).unwrap());
    println!("{:?}", nft.apply(&state).unwrap());
    println!("{:?}", nft.hits().unwrap());
    Command::new("nft").args(["list", "ruleset"]).status().unwrap();
    nft.remove().unwrap();
    nft.remove().unwrap();
    ExitCode::SUCCESS
}
