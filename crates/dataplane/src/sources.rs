//! A pod sends only from its own addresses.
//!
//! The kernel knows where an address is: where the route to it leads. What comes from a pod's link
//! with a source that no route leads back to over this link is dropped, and so is what comes from
//! anywhere with a pod's address for its source.
//!
//! ```nft
//! table inet portcullis-sources {
//!     set own4 {
//!         type ipv4_addr . iface_index
//!         elements = { 10.244.1.4 . "veth1", 10.244.1.5 . "veth2" }
//!     }
//!     set own6 {
//!         type ipv6_addr . iface_index
//!     }
//!     set links {
//!         type iface_index
//!         elements = { "veth1", "veth2" }
//!     }
//!     set pods4 {
//!         type ipv4_addr
//!         elements = { 10.244.1.4, 10.244.1.5 }
//!     }
//!     set pods6 {
//!         type ipv6_addr
//!     }
//!     set heard {
//!         type iface_index
//!         size 16384
//!         flags dynamic,timeout
//!         timeout 10s
//!     }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip saddr . iif @own4 accept
//!         ip6 saddr . iif @own6 accept
//!         ip6 saddr fe80::/10 accept
//!         iif @links fib saddr . iif oif missing goto false-source
//!         ip saddr @pods4 fib saddr . iif oif missing goto false-source
//!         ip6 saddr @pods6 fib saddr . iif oif missing goto false-source
//!     }
//!     chain false-source {
//!         update @heard { iif limit rate over 10/second burst 50 packets } counter drop
//!         limit rate 100/second burst 100 packets log prefix "false-source" group 86 snaplen 128 counter
//!         counter drop
//!     }
//! }
//! ```
//!
//! What the routes said of pods when they were looked at last is in the first two sets, so that for
//! nearly every packet one lookup does. When a route or a link changes they are looked at again.
//!
//! Of what is told, each link has its share: the source of such a packet says nothing of its sender.
//!
//! Link-local sources are left alone: nobody forwards them, and neighbours are found with them.
//! Links that are no pod's may receive from any source, as routes may be asymmetric there.
//!
//! Where nothing is refused (SEMANTICS 28), `counter accept` stands in the place of `counter drop`, and
//! the prefix is `audited-source`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portcullis_core::net::Family;

use crate::attributes::Attributes;
use crate::encode::{
    DATA_VALUE, EQUAL, FAMILY_V4, FAMILY_V6, META_FAMILY, NETWORK_HEADER, Request, Room, compare,
    expression, load_meta, load_payload,
};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket};
use crate::plan::Limit;
use crate::state::{Log, NodeState};
use crate::table::{self, ADDRESS_V4, ADDRESS_V6, Changes, LINK, Table, Verdict, register};
use crate::{Difference, Error, Tally};

/// The name of the table; its family is `inet`.
const SOURCES_TABLE: &str = "portcullis-sources";

const BASE: &str = "prerouting";
/// Where packets with a false source go, and what the log says of them.
pub(crate) const FALSE_SOURCE: &str = "false-source";
/// What the log says of one that passes all the same.
pub(crate) const AUDITED_SOURCE: &str = "audited-source";
const HOOK_PREROUTING: u32 = 0;
/// Before connection tracking.
const PRIORITY_RAW: i32 = -300;
const META_LINK: u32 = 4;

/// Addresses that are of nobody (RFC 5737, RFC 3849): the route to them is that to elsewhere.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV6_ROUTE` of `linux/rtnetlink.h`. When a link
/// goes, nothing is told of its IPv4 routes.
const ROUTE_GROUPS: [u32; 3] = [1, 7, 11];

/// The sources of packets in one network namespace.
#[derive(Debug)]
pub struct Sources {
    netfilter: NetlinkSocket,
    route: NetlinkSocket,
    /// Hears what becomes of routes and links.
    moves: NetlinkSocket,
    changes: Changes,
    /// What was put in force last.
    in_force: Option<Known>,
    /// What was dropped by what is no longer in force.
    dropped: Tally,
}

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The addresses of pods, and the numbers of the links that lead to them.
    pods: BTreeMap<IpAddr, u32>,
    log: Option<Log>,
    /// As in [`NodeState::audit`].
    audit: bool,
}

impl Sources {
    /// Works in the network namespace of the calling thread. What an earlier process put there
    /// stays until the first [`follow`](Sources::follow).
    pub fn open() -> Result<Sources, Error> {
        let mut moves = NetlinkSocket::listener(NETLINK_ROUTE)?;
        ROUTE_GROUPS.into_iter().try_for_each(|group| moves.join(group))?;
        Ok(Sources {
            netfilter: NetlinkSocket::open(NETLINK_NETFILTER)?,
            route: NetlinkSocket::open(NETLINK_ROUTE)?,
            moves,
            changes: Changes::default(),
            in_force: None,
            dropped: Tally::default(),
        })
    }

    /// Drops from now on what has a false source, by the local pods of the state and the routes to
    /// them. To be called again when routes have [moved](Sources::have_moved). Says how many links
    /// lead to pods.
    pub fn follow(&mut self, state: &NodeState) -> Result<usize, Error> {
        let pods = self.links_to(state.endpoints.keys())?;
        let known = Known { pods, log: state.log, audit: state.audit };
        let links = known.links().len();
        if self.in_force.as_ref() != Some(&known) {
            self.dropped = self.dropped();
            self.in_force = None;
            table::commit(&mut self.netfilter, requests(&known))?;
            self.in_force = Some(known);
        }
        Ok(links)
    }

    /// The same for these addresses of the state, which may be new, at little cost. The others stay as
    /// they are.
    pub fn admit(&mut self, state: &NodeState, addresses: &[IpAddr]) -> Result<(), Error> {
        let Some(mut known) = self.in_force.clone() else { return self.follow(state).map(drop) };
        let local = addresses.iter().filter(|address| state.endpoints.contains_key(address));
        let pods = self.links_to(local)?;
        let elsewhere = |(address, link): (&IpAddr, &u32)| {
            known.pods.get(address).is_some_and(|known| known != link)
        };
        if pods.iter().any(elsewhere) {
            return self.follow(state).map(drop);
        }
        let mut table = Table::new(SOURCES_TABLE);
        add(&mut table, &pods);
        self.in_force = None;
        table::commit(&mut self.netfilter, table.into_requests())?;
        known.pods.extend(pods);
        self.in_force = Some(known);
        Ok(())
    }

    /// Whether a route or a link has changed since the last call, or may have.
    pub fn have_moved(&mut self) -> bool {
        // An error means that more was told than could be kept, or read.
        let heard = self.moves.heard::<RouteNetlinkMessage>();
        heard.map_or(true, |heard| !heard.is_empty())
    }

    /// How what is in force differs from what was put there, because somebody else changed it. It costs
    /// next to nothing as long as nobody changes anything in nf_tables. The next
    /// [`follow`](Sources::follow) puts it there anew.
    pub fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        if self.in_force.is_none() || !self.changes.any(&mut self.netfilter)? {
            return Ok(Vec::new());
        }
        let Some(known) = &self.in_force else { return Ok(Vec::new()) };
        let differences = Table::differences(&requests(known), &mut self.netfilter)?;
        if !differences.is_empty() {
            self.dropped = self.dropped();
            self.in_force = None;
        }
        Ok(differences)
    }

    /// What was dropped in all since this was opened.
    pub fn dropped(&mut self) -> Tally {
        let mut dropped = self.dropped;
        if self.in_force.is_some()
            && let Some(now) = Table::new(SOURCES_TABLE).ended(FALSE_SOURCE, &mut self.netfilter)
        {
            dropped += now;
        }
        dropped
    }

    /// Lets every source pass.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.in_force = None;
        table::commit(&mut self.netfilter, Table::removed(SOURCES_TABLE))
    }

    /// The links that lead to pods with these addresses. A pod that is not there yet, or not any more,
    /// is looked for elsewhere.
    fn links_to<'a>(
        &mut self,
        addresses: impl Iterator<Item = &'a IpAddr>,
    ) -> Result<BTreeMap<IpAddr, u32>, Error> {
        let mut elsewhere = BTreeSet::new();
        for address in ELSEWHERE {
            elsewhere.extend(self.link_to(address)?);
        }
        let mut pods = BTreeMap::new();
        for address in addresses {
            if let Some(link) = self.link_to(*address)?.filter(|link| !elsewhere.contains(link)) {
                pods.insert(*address, link);
            }
        }
        Ok(pods)
    }

    /// The link that leads to an address without a gateway. An address without a route has none.
    fn link_to(&mut self, address: IpAddr) -> Result<Option<u32>, Error> {
        let mut message = RouteMessage::default();
        let (family, bits, wanted) = match address {
            IpAddr::V4(a) => (AddressFamily::Inet, 32, RouteAddress::Inet(a)),
            IpAddr::V6(a) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(a)),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = bits;
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Destination(wanted));
        let answers = match self.route.request(RouteNetlinkMessage::GetRoute(message), 0) {
            Ok(answers) => answers,
            // The kernel says in many ways that there is no way.
            Err(Error::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answers.iter().find_map(|answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            let gateway = |a: &RouteAttribute| {
                matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
            };
            let direct = route.header.kind == RouteType::Unicast;
            if !direct || route.attributes.iter().any(gateway) {
                return None;
            }
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(*link),
                _ => None,
            })
        }))
    }
}

impl Known {
    fn links(&self) -> BTreeSet<u32> {
        self.pods.values().copied().collect()
    }
}

/// Adds pods to the sets.
fn add(table: &mut Table, pods: &BTreeMap<IpAddr, u32>) {
    let links: BTreeSet<&u32> = pods.values().collect();
    table.add_elements("links", links.into_iter().map(|link| link.to_ne_bytes().to_vec()));
    for (family, own, of_pods) in [(Family::V4, "own4", "pods4"), (Family::V6, "own6", "pods6")] {
        let of_family = || pods.iter().filter(move |(address, _)| Family::of(**address) == family);
        let own_elements = of_family().map(|(one, link)| {
            let mut bytes = Vec::new();
            table::address(*one, &mut bytes);
            bytes.extend(link.to_ne_bytes());
            bytes
        });
        table.add_elements(own, own_elements);
        table.add_addresses(of_pods, of_family().map(|(address, _)| address));
    }
}

/// Puts the table there, whatever was there.
fn requests(known: &Known) -> Vec<Request> {
    let mut table = Table::anew(SOURCES_TABLE);
    table.base_chain(BASE, HOOK_PREROUTING, PRIORITY_RAW);
    table.chain(FALSE_SOURCE);
    let (then, said) = match known.audit {
        true => (Verdict::Accept, AUDITED_SOURCE),
        false => (Verdict::Drop, FALSE_SOURCE),
    };
    if let Some(log) = known.log {
        table.dynamic_set("heard", &[LINK], Room::OF_HEARD);
        let link = |list: &mut Attributes| load_meta(list, META_LINK, register(0));
        table.ends_beyond(FALSE_SOURCE, link, "heard", Limit::of_one_source(log), then);
    }
    table.ends(FALSE_SOURCE, known.log.map(|log| (log, said)), then);
    table.set("links", &[LINK]);
    table.set("pods4", &[ADDRESS_V4]);
    table.set("pods6", &[ADDRESS_V6]);
    table.set("own4", &[ADDRESS_V4, LINK]);
    table.set("own6", &[ADDRESS_V6, LINK]);
    add(&mut table, &known.pods);
    for (set, family, at, length) in [("own4", FAMILY_V4, 12, 4), ("own6", FAMILY_V6, 8, 16)] {
        table.rule(BASE, |list| {
            load_meta(list, META_FAMILY, register(0));
            compare(list, EQUAL, &[family]);
            load_payload(list, NETWORK_HEADER, at, length, register(0));
            load_meta(list, META_LINK, register(length));
            table::lookup(list, set);
            table::verdict(list, Verdict::Accept);
        });
    }
    table.rule(BASE, |list| {
        load_meta(list, META_FAMILY, register(0));
        compare(list, EQUAL, &[FAMILY_V6]);
        load_payload(list, NETWORK_HEADER, 8, 16, register(0));
        let begins_with = |first: u8, second: u8| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&[first, second]);
            bytes
        };
        expression(list, "bitwise", |bitwise| {
            bitwise.u32(1, register(0)).u32(2, register(0)).u32(3, 16);
            bitwise.nest(4, |mask| {
                mask.bytes(DATA_VALUE, &begins_with(0xff, 0xc0));
            });
            bitwise.nest(5, |xor| {
                xor.bytes(DATA_VALUE, &[0; 16]);
            });
        });
        compare(list, EQUAL, &begins_with(0xfe, 0x80));
        table::verdict(list, Verdict::Accept);
    });
    table.rule(BASE, |list| {
        load_meta(list, META_LINK, register(0));
        table::lookup(list, "links");
        false_source(list);
    });
    for (set, family, at, length) in [("pods4", FAMILY_V4, 12, 4), ("pods6", FAMILY_V6, 8, 16)] {
        table.rule(BASE, |list| {
            load_meta(list, META_FAMILY, register(0));
            compare(list, EQUAL, &[family]);
            load_payload(list, NETWORK_HEADER, at, length, register(0));
            table::lookup(list, set);
            false_source(list);
        });
    }
    table.into_requests()
}

/// `fib saddr . iif oif missing goto false-source`.
fn false_source(list: &mut Attributes) {
    const RESULT_LINK: u32 = 1;
    const OF_SOURCE: u32 = 1;
    const BY_INCOMING_LINK: u32 = 8;
    const WHETHER: u32 = 32;
    expression(list, "fib", |fib| {
        fib.u32(1, register(0)).u32(2, RESULT_LINK);
        fib.u32(3, OF_SOURCE | BY_INCOMING_LINK | WHETHER);
    });
    compare(list, EQUAL, &[0; 4]);
    table::verdict(list, Verdict::Goto(FALSE_SOURCE));
}
