//! A lab that is up.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use nix::sys::resource::{Resource, getrlimit};
use portcullis_core::net::{Family, Protocol};
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};

use crate::Error;
use crate::families::Families;
use crate::namespace::{Namespace, on_own_thread};
use crate::plan::Plan;
use crate::plan::Topology;
use crate::probe::{self, Fresh, Outcome, Probe};
use crate::respond::{Names, Port, Responders};
use crate::wiring::{self, Place, Setting, Space, Spaces, node_space};

/// A lab that is up. When it is dropped, all of it is gone: it consists of open files and of one
/// thread of this process, so it is gone too if the process is killed.
#[derive(Debug)]
pub struct Lab {
    plan: Plan,
    // Before the namespaces, so that the sockets close first.
    responders: Arc<Responders>,
    rooms: Vec<Room>,
    /// For each endpoint the index of its room.
    room_of: Vec<usize>,
    names: Names,
    fresh: Fresh,
}

/// A namespace of a lab.
#[derive(Debug)]
pub(crate) struct Room {
    /// The number of its space.
    pub(crate) number: u32,
    pub(crate) namespace: Arc<Namespace>,
    /// The ports that are open there whatever [`Lab::listen`] is told.
    pub(crate) standing: BTreeSet<Port>,
}

/// How long links may take to come up.
const LINKS_SECONDS: u64 = 10;
/// Open files that stay for probes, whatever else is open.
const FILES_FOR_PROBES: usize = 512;

impl Lab {
    /// Builds the network of the plan. [`enter`](crate::enter) comes first. No port is
    /// open yet, and no rule is in any node. `progress` is told how many of how many namespaces are done.
    pub fn up(plan: &Plan, mut progress: impl FnMut(usize, usize) + Send) -> Result<Lab, Error> {
        let spaces = Spaces::of(plan);
        require_files(spaces.all.len())?;
        let namespaces =
            Namespace::create(&spaces.all, |space| set_all(space, plan.families, plan.topology))?;
        on_own_thread(|| {
            for (index, space) in spaces.all.iter().enumerate() {
                namespaces[index].enter()?;
                let file = |child: usize| namespaces[child].file().as_raw_fd();
                configure(&space.owner, spaces.requests(index, file))?;
                progress(index + 1, spaces.all.len());
            }
            let routers = spaces.all.iter().zip(&namespaces).filter(|(s, _)| s.is_router());
            for (space, namespace) in routers {
                namespace.enter()?;
                wait_for_links(&space.owner)?;
            }
            Ok::<(), Error>(())
        })?;
        let names = names(plan);
        let responders = Responders::start(names.clone(), plan.families)
            .map_err(|source| Error::Socket { step: "start the responders".to_owned(), source })?;
        let room = |(space, namespace): (&Space, Namespace)| Room {
            number: space.number,
            namespace: Arc::new(namespace),
            standing: BTreeSet::new(),
        };
        let mut lab = Lab {
            plan: plan.clone(),
            responders: Arc::new(responders),
            rooms: spaces.all.iter().zip(namespaces).map(room).collect(),
            room_of: spaces.of_endpoints,
            names,
            fresh: Fresh::default(),
        };
        // SCTP and ICMP have their answers also where no port is open.
        lab.listen(&BTreeSet::new())?;
        Ok(lab)
    }

    /// A lab of namespaces that are there already, and stay when this is dropped.
    pub(crate) fn of(
        plan: Plan,
        rooms: Vec<Room>,
        room_of: Vec<usize>,
        responders: Arc<Responders>,
        fresh: Fresh,
    ) -> Lab {
        Lab { names: names(&plan), plan, responders, rooms, room_of, fresh }
    }

    /// What tells later probes from those of this lab.
    pub(crate) fn into_fresh(self) -> Fresh {
        self.fresh
    }

    /// What the lab consists of.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Calls the closure on a thread in the network namespace of a node, given as an index into
    /// the nodes of the plan's cluster. Sockets that it opens stay in that namespace wherever they
    /// are used.
    pub fn in_node<T: Send>(
        &self,
        node: usize,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, Error> {
        let nodes = self.plan.cluster.nodes.len();
        if node >= nodes {
            return Err(Error::NoSuchNode { node, nodes });
        }
        on_own_thread(|| {
            self.rooms[node_space(node)].namespace.enter()?;
            Ok(work())
        })
    }

    /// The same in the network namespace of an endpoint, given as an index into the plan's.
    pub fn in_endpoint<T: Send>(
        &self,
        endpoint: usize,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, Error> {
        on_own_thread(|| {
            self.rooms[self.room_of[endpoint]].namespace.enter()?;
            Ok(work())
        })
    }

    /// Has every endpoint answer on these ports, and on no others. ICMP echo is always answered.
    /// Port 0, which nobody can listen on, is passed over.
    ///
    /// Each TCP and UDP port takes an open file per endpoint. Fails with [`Error::TooManyFiles`] if
    /// they are too many; [`Lab::ports_at_once`] says how many can be open.
    pub fn listen(&mut self, ports: &BTreeSet<(Protocol, u16)>) -> Result<(), Error> {
        let ports: BTreeSet<Port> = ports.iter().copied().filter(|(_, port)| *port != 0).collect();
        let ports_of = |room: &Room| &room.standing | &ports;
        let missing = |room: &Room| self.responders.missing(room.number, &ports_of(room));
        require_files(self.rooms.iter().map(missing).sum::<usize>() + FILES_FOR_PROBES)?;
        let opened = on_own_thread(|| {
            for room in &self.rooms {
                room.namespace.enter()?;
                let served = self.responders.serve(room.number, &ports_of(room));
                served.map_err(|((protocol, port), error)| {
                    Error::socket(&format!("listen on {port}/{protocol}"), error)
                })?;
            }
            Ok(())
        });
        if opened.is_err() {
            // Rather none than a port that is open at some.
            self.rooms.iter().for_each(|room| self.responders.close(room.number));
        }
        opened
    }

    /// How many TCP and UDP ports [`Lab::listen`] can have open, by the limit of open files.
    pub fn ports_at_once(&self) -> usize {
        let files = file_limit().saturating_sub(self.rooms.len() + 2 * FILES_FOR_PROBES);
        // SCTP has one raw socket per family, whatever the number of its ports.
        (files / self.rooms.len()).saturating_sub(2)
    }

    /// Sends all probes and waits for what comes of them: as many outcomes, in the same order.
    /// `settled` is told how many more probes have their outcome.
    pub fn probe(
        &mut self,
        probes: &[Probe],
        settled: impl FnMut(usize) + Send,
    ) -> Result<Vec<Outcome>, Error> {
        let Lab { names, fresh, rooms, room_of, .. } = self;
        on_own_thread(|| probe::run(probes, names, fresh, rooms, room_of, settled))
    }
}

/// How many files this process may have open.
pub(crate) fn file_limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft as usize)
}

pub(crate) fn require_files(more: usize) -> Result<(), Error> {
    let needed = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) + more;
    let limit = file_limit();
    if needed > limit { Err(Error::TooManyFiles { needed, limit }) } else { Ok(()) }
}

/// Who is at which address.
fn names(plan: &Plan) -> Names {
    let endpoints = plan.endpoints.iter();
    endpoints.flat_map(|e| e.addresses.iter().map(|a| (*a, e.name.clone()))).collect()
}

/// Sets up the network of the namespace of the calling thread.
pub(crate) fn configure(owner: &str, requests: Vec<wiring::Request>) -> Result<(), Error> {
    NetlinkSocket::open(NETLINK_ROUTE)
        .and_then(|mut socket| socket.batch(requests))
        .map_err(|source| Error::Network { owner: owner.to_owned(), source })
}

/// Makes the settings of a space in the namespace of the calling thread.
pub(crate) fn set_all(space: &Space, families: Families, topology: Topology) -> Result<(), Error> {
    let v6 = families.contains(Family::V6);
    let mut settings = wiring::SETTINGS.to_vec();
    if v6 {
        settings.extend(wiring::SETTINGS_V6);
    }
    if space.is_router() {
        settings.push(wiring::FORWARDING);
        settings.extend(v6.then_some(wiring::FORWARDING_V6));
    }
    if space.place == Place::Node && topology == Topology::Bridged {
        settings.extend(wiring::BRIDGE_NETFILTER);
    }
    settings.into_iter().try_for_each(|setting| set(space, setting))
}

/// `/proc/sys/net` is that of the thread that opens the file.
fn set(space: &Space, (name, value): Setting) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).map_err(|source| Error::Setting {
        owner: space.owner.clone(),
        path,
        value,
        source,
    })
}

/// The kernel takes a link into use a moment after both its ends are up.
pub(crate) fn wait_for_links(owner: &str) -> Result<(), Error> {
    let network = |source| Error::Network { owner: owner.to_owned(), source };
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).map_err(network)?;
    let started = Instant::now();
    loop {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = socket.dump(all).map_err(network)?;
        let waits = |link: &RouteNetlinkMessage| match link {
            RouteNetlinkMessage::NewLink(link) if wiring::is_veth(link.header.index) => {
                link.attributes.iter().any(|attribute| {
                    use LinkAttribute::OperState;
                    matches!(attribute, OperState(State::Down | State::LowerLayerDown))
                })
            }
            _ => false,
        };
        if !links.iter().any(waits) {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(LINKS_SECONDS) {
            return Err(Error::LinksDown { owner: owner.to_owned(), seconds: LINKS_SECONDS });
        }
        thread::sleep(Duration::from_millis(1));
    }
}
