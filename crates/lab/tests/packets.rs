//! scratch
use std::collections::BTreeSet;
use std::time::Instant;

use portcullis_core::model::{Cluster, IpBlock, Peer, Pod, Policy, Rule};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_lab::{Lab, Options, Outcome, Probe, enter, plan};

fn main() {
    let n: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(4);
    enter().unwrap();
    let mut cluster = Cluster::default();
    for i in 0..n {
        cluster.pods.push(Pod { namespace: "d".into(), name: format!("p{i}"), ..Pod::default() });
    }
    cluster.policies.push(Policy {
        namespace: "d".into(),
        name: "x".into(),
        ingress: Some(vec![Rule {
            peers: vec![Peer::Block(IpBlock {
                cidr: "192.168.0.0/16".parse().unwrap(),
                except: vec!["192.168.5.0/24".parse().unwrap()],
            })],
            ports: vec![],
        }]),
        ..Policy::default()
    });
    let plan = plan(&cluster, &Options { nodes: 2, ..Options::default() }).unwrap();
    for e in plan.endpoints.iter().take(20) {
        println!("{e:?}");
    }
    let t = Instant::now();
    let mut lab = Lab::up(&plan, |_, _| ()).unwrap();
    println!("up {:?}", t.elapsed());
    let t = Instant::now();
    let ports: BTreeSet<(Protocol, u16)> =
        [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 7)].into();
    lab.listen(&ports).unwrap();
    println!("listen {:?}", t.elapsed());
    for traffic in [
        Traffic::Other,
        Traffic::Port(Protocol::Tcp, 80),
        Traffic::Port(Protocol::Udp, 53),
        Traffic::Port(Protocol::Sctp, 7),
        Traffic::Port(Protocol::Tcp, 81),
        Traffic::Port(Protocol::Udp, 54),
        Traffic::Port(Protocol::Sctp, 8),
    ] {
        let mut probes = vec![];
        for (i, a) in plan.endpoints.iter().enumerate() {
            for b in &plan.endpoints {
                for from in &a.addresses {
                    for to in &b.addresses {
                        if Family::of(*from) == Family::of(*to) && probes.len() < 30000 {
                            probes.push(Probe {
                                source: i,
                                from: *from,
                                to: *to,
                                traffic,
                                expect: None,
                            });
                        }
                    }
                }
            }
        }
        let t = Instant::now();
        let out = lab.probe(&probes, |_| ()).unwrap();
        let e = t.elapsed();
        let mut kinds = std::collections::BTreeMap::new();
        for (p, o) in probes.iter().zip(&out) {
            let k = match o {
                Outcome::Answered(name) => {
                    format!(
                        "Answered {}",
                        *name == plan.endpoints[plan.endpoint_at(p.to).unwrap()].name
                    )
                }
                o => format!("{o:?}"),
            };
            *kinds.entry(k).or_insert(0) += 1;
        }
        println!("{traffic} {} {e:?} {kinds:?}", probes.len());
    }
    let t = Instant::now();
    drop(lab);
    println!("down {:?}", t.elapsed());
}
