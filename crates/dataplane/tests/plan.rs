//! What small states look like as a table.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy allows it in the tests, but not beside them"
)]

use std::net::IpAddr;

use portcullis_core::net::{Family, IpNet, Protocol};
use portcullis_dataplane::plan::{ChainId, Direction, SetId, plan, render};
use portcullis_dataplane::state::{Entry, Log, NodeState, PeerSet, Ports, Profile};

/// Reads a state from lines:
///
/// ```text
/// peers near = 10.1.0.1 fd00::1     or blocks: 10.0.0.0/8
/// profile web                       its entries follow, each is an origin
///   ingress near tcp 80-90          or any, or closed
/// pod 10.0.0.1 web
/// ```
fn state(text: &str) -> NodeState {
    let mut state = NodeState::default();
    let (mut peers, mut profiles, mut origins) = (Vec::new(), Vec::new(), 0);
    let index = |names: &[String], name: &str| {
        names.iter().position(|known| known == name).unwrap_or_else(|| panic!("no {name}")) as u32
    };
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match &*words {
            [] => {}
            ["peers", name, "=", set @ ..] => {
                let number = peers.len() as u32;
                peers.push((*name).to_owned());
                let set = match set.iter().map(|word| word.parse()).collect() {
                    Ok(addresses) => PeerSet::Addresses(addresses),
                    Err(_) => PeerSet::Ranges(set.iter().map(|word| block(word)).collect()),
                };
                state.peers.insert(number, set);
            }
            ["profile", name] => {
                state.profiles.insert(profiles.len() as u32, Profile::default());
                profiles.push((*name).to_owned());
            }
            ["pod", address, profile] => {
                state.endpoints.insert(address.parse().unwrap(), index(&profiles, profile));
            }
            [direction @ ("ingress" | "egress"), peer, ports @ ..] => {
                let mut profile = state.profiles.last_entry().unwrap();
                let profile = profile.get_mut();
                let entries = match *direction {
                    "ingress" => &mut profile.ingress,
                    _ => &mut profile.egress,
                };
                let mut all = entries.as_deref().map(<[Entry]>::to_vec).unwrap_or_default();
                if *peer == "closed" {
                    *entries = Some(all.into());
                    continue;
                }
                all.push(Entry {
                    peers: (*peer != "any").then(|| index(&peers, peer)),
                    ports: (!ports.is_empty()).then(|| self::ports(ports)),
                    origin: origins,
                });
                *entries = Some(all.into());
                origins += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    state
}

fn block(text: &str) -> portcullis_core::net::IpRange {
    match text.parse::<IpNet>() {
        Ok(net) => net.into(),
        Err(_) => IpNet::from(text.parse::<IpAddr>().unwrap()).into(),
    }
}

fn ports(words: &[&str]) -> Ports {
    let protocol = Protocol::from_api(&words[0].to_uppercase()).unwrap();
    let (first, last) = words[1].split_once('-').unwrap_or((words[1], words[1]));
    Ports { protocol, first: first.parse().unwrap(), last: last.parse().unwrap() }
}

/// Compares the table, without the declarations of chains that come first for `nft`.
#[track_caller]
fn check(state: &NodeState, expected: &str) {
    let table = render(&plan(state).unwrap());
    let (_, table) = table.split_once("\n\n").unwrap();
    assert_eq!(table.replace("\n\n", "\n").replace('\t', "  "), expected.trim_start_matches('\n'));
}

#[test]
fn exact_ports_of_addresses_are_one_hash_set_per_family() {
    let state = state(
        "
peers near = 10.1.0.1 fd00::7
profile web
  ingress near tcp 80
pod 10.0.0.1 web
pod fd00::1 web
",
    );
    check(
        &state,
        "
  set self4 {
    type ipv4_addr . ipv4_addr
    elements = {
      10.0.0.1 . 10.0.0.1,
    }
  }
  set self6 {
    type ipv6_addr . ipv6_addr
    elements = {
      fd00::1 . fd00::1,
    }
  }
  map ingress4 {
    type ipv4_addr : verdict
    elements = {
      10.0.0.1 : jump p00000000-ingress,
    }
  }
  map ingress6 {
    type ipv6_addr : verdict
    elements = {
      fd00::1 : jump p00000000-ingress,
    }
  }
  set p00000000-ingress-exact4 {
    type ipv4_addr . inet_proto . inet_service
    counter
    elements = {
      10.1.0.1 . tcp . 80,
    }
  }
  set p00000000-ingress-exact6 {
    type ipv6_addr . inet_proto . inet_service
    counter
    elements = {
      fd00::7 . tcp . 80,
    }
  }
  set changed4 {
    type ipv4_addr
  }
  set changed6 {
    type ipv6_addr
  }
  chain forward {
    ct state established,related accept
    ip6 hoplimit 255 icmpv6 type 133-137 accept
    ip saddr . ip daddr @self4 accept
    ip6 saddr . ip6 daddr @self6 accept
    ip daddr vmap @ingress4
    ip6 daddr vmap @ingress6
    ip saddr @changed4 drop
    ip daddr @changed4 drop
    ip6 saddr @changed6 drop
    ip6 daddr @changed6 drop
  }
  chain p00000000-ingress {
    ip saddr . meta l4proto . th dport @p00000000-ingress-exact4 return
    ip6 saddr . meta l4proto . th dport @p00000000-ingress-exact6 return
    goto refused-ingress
  }
  chain refused-ingress {
    counter drop
  }
}
",
    );
}

#[test]
fn overlapping_blocks_are_cut_and_each_piece_counts_for_all_its_origins() {
    let state = state(
        "
peers a = 10.1.0.1
peers b = 10.0.0.0/8
peers c = 10.1.0.0/16 192.168.5.10
profile p
  egress a
  egress b
  egress c
pod 10.0.0.1 p
",
    );
    check(
        &state,
        "
  set self4 {
    type ipv4_addr . ipv4_addr
    elements = {
      10.0.0.1 . 10.0.0.1,
    }
  }
  map egress4 {
    type ipv4_addr : verdict
    elements = {
      10.0.0.1 : jump p00000000-egress,
    }
  }
  set p00000000-egress-addresses4 {
    type ipv4_addr
    counter
    elements = {
      10.1.0.1,
    }
  }
  set p00000000-egress-blocks4 {
    type ipv4_addr
    flags interval
    counter
    elements = {
      10.0.0.0-10.0.255.255,
      10.1.0.0-10.1.255.255,
      10.2.0.0-10.255.255.255,
      192.168.5.10,
    }
  }
  set changed4 {
    type ipv4_addr
  }
  set changed6 {
    type ipv6_addr
  }
  chain forward {
    ct state established,related accept
    ip6 hoplimit 255 icmpv6 type 133-137 accept
    ip saddr . ip daddr @self4 accept
    ip saddr vmap @egress4
    ip saddr @changed4 drop
    ip daddr @changed4 drop
    ip6 saddr @changed6 drop
    ip6 daddr @changed6 drop
  }
  chain p00000000-egress {
    ip daddr @p00000000-egress-addresses4 return
    ip daddr @p00000000-egress-blocks4 return
    goto refused-egress
  }
  chain refused-egress {
    counter drop
  }
}
",
    );
    let plan = plan(&state).unwrap();
    let chain = ChainId::Profile(0, Direction::Egress);
    let set = plan.set(SetId::Blocks(chain, Family::V4)).unwrap();
    let pieces = set.elements().map(|element| set.origins(element.origins));
    assert_eq!(pieces.collect::<Vec<_>>(), [&[1][..], &[1, 2], &[1], &[2]]);
}

#[test]
fn port_ranges_are_cut_into_chains() {
    let state = state(
        "
peers a = 10.1.0.1
peers b = 10.0.0.0/8
profile p
  ingress a tcp 80-89
  ingress b tcp 85-99
  ingress any tcp 443
  ingress any udp 0-65535
pod 10.0.0.1 p
",
    );
    check(
        &state,
        "
  set self4 {
    type ipv4_addr . ipv4_addr
    elements = {
      10.0.0.1 . 10.0.0.1,
    }
  }
  map ingress4 {
    type ipv4_addr : verdict
    elements = {
      10.0.0.1 : jump p00000000-ingress,
    }
  }
  map p00000000-ingress-ports {
    type inet_service . inet_proto : verdict
    flags interval
    elements = {
      80-84 . tcp : goto p00000000-ingress-ports0,
      85-89 . tcp : goto p00000000-ingress-ports1,
      90-99 . tcp : goto p00000000-ingress-ports2,
      443 . tcp : goto p00000000-ingress-ports3,
      0-65535 . udp : goto p00000000-ingress-ports4,
    }
  }
  set p00000000-ingress-ports0-addresses4 {
    type ipv4_addr
    counter
    elements = {
      10.1.0.1,
    }
  }
  set p00000000-ingress-ports1-addresses4 {
    type ipv4_addr
    counter
    elements = {
      10.1.0.1,
    }
  }
  set p00000000-ingress-ports1-blocks4 {
    type ipv4_addr
    flags interval
    counter
    elements = {
      10.0.0.0-10.255.255.255,
    }
  }
  set p00000000-ingress-ports2-blocks4 {
    type ipv4_addr
    flags interval
    counter
    elements = {
      10.0.0.0-10.255.255.255,
    }
  }
  set changed4 {
    type ipv4_addr
  }
  set changed6 {
    type ipv6_addr
  }
  chain forward {
    ct state established,related accept
    ip6 hoplimit 255 icmpv6 type 133-137 accept
    ip saddr . ip daddr @self4 accept
    ip daddr vmap @ingress4
    ip saddr @changed4 drop
    ip daddr @changed4 drop
    ip6 saddr @changed6 drop
    ip6 daddr @changed6 drop
  }
  chain p00000000-ingress {
    th dport . meta l4proto vmap @p00000000-ingress-ports
    goto refused-ingress
  }
  chain p00000000-ingress-ports0 {
    ip saddr @p00000000-ingress-ports0-addresses4 return
    goto refused-ingress
  }
  chain p00000000-ingress-ports1 {
    ip saddr @p00000000-ingress-ports1-addresses4 return
    ip saddr @p00000000-ingress-ports1-blocks4 return
    goto refused-ingress
  }
  chain p00000000-ingress-ports2 {
    ip saddr @p00000000-ingress-ports2-blocks4 return
    goto refused-ingress
  }
  chain p00000000-ingress-ports3 {
    counter return
  }
  chain p00000000-ingress-ports4 {
    counter return
  }
  chain refused-ingress {
    counter drop
  }
}
",
    );
}

#[test]
fn equal_chains_are_one_and_open_directions_have_none() {
    let state = state(
        "
profile p
  ingress any
  egress closed
profile q
  egress closed
profile open
pod 10.0.0.1 p
pod 10.0.0.2 q
pod 10.0.0.3 open
",
    );
    check(
        &state,
        "
  set self4 {
    type ipv4_addr . ipv4_addr
    elements = {
      10.0.0.1 . 10.0.0.1,
      10.0.0.2 . 10.0.0.2,
      10.0.0.3 . 10.0.0.3,
    }
  }
  map egress4 {
    type ipv4_addr : verdict
    elements = {
      10.0.0.1 : jump p00000000-egress,
      10.0.0.2 : jump p00000000-egress,
    }
  }
  map ingress4 {
    type ipv4_addr : verdict
    elements = {
      10.0.0.1 : jump p00000000-ingress,
    }
  }
  set changed4 {
    type ipv4_addr
  }
  set changed6 {
    type ipv6_addr
  }
  chain forward {
    ct state established,related accept
    ip6 hoplimit 255 icmpv6 type 133-137 accept
    ip saddr . ip daddr @self4 accept
    ip saddr vmap @egress4
    ip daddr vmap @ingress4
    ip saddr @changed4 drop
    ip daddr @changed4 drop
    ip6 saddr @changed6 drop
    ip6 daddr @changed6 drop
  }
  chain p00000000-egress {
    goto refused-egress
  }
  chain p00000000-ingress {
    counter return
  }
  chain refused-egress {
    counter drop
  }
}
",
    );
}

#[test]
fn what_is_refused_is_told_at_one_place_for_each_direction() {
    let mut state = state(
        "
profile p
  egress closed
pod 10.0.0.1 p
",
    );
    state.log = Some(Log { group: 5, rate: 20 });
    let told = plan(&state).unwrap();
    let text = render(&told);
    let rules = "
\tchain refused-egress {
\t\tupdate @heard4 { ip saddr limit rate over 2/second burst 10 packets } counter drop
\t\tupdate @heard6 { ip6 saddr limit rate over 2/second burst 10 packets } counter drop
\t\tlimit rate 20/second burst 20 packets log prefix \"refused-egress\" group 5 snaplen 128 counter
\t\tcounter drop
\t}
";
    assert!(text.contains(rules), "{text}");
    let heard = "
\tset heard4 {
\t\ttype ipv4_addr
\t\tsize 16384
\t\tflags dynamic,timeout
\t\ttimeout 10s
\t}
";
    assert!(text.contains(heard), "{text}");
    assert!(!text.contains("refused-ingress"), "nothing leads there");
    state.log = None;
    let untold = plan(&state).unwrap();
    let differs = |id: &&ChainId| told.chain(**id) != untold.chain(**id);
    let changed: Vec<_> = told.chains.keys().filter(differs).collect();
    assert_eq!(changed, [&ChainId::Refused(Direction::Egress)]);
}
