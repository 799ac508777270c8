//! TCP connections of the pods, new ones and such that are held, to pods and through a Service.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_core::model::Direction;
use portcullis_core::net::Protocol;
use socket2::{Domain, Socket, Type};

use crate::chaos::{Knock, MAGIC, Pod, State, World};

/// Where pods listen, and the Service too.
pub(crate) const PORT: u16 = 7003;
/// How soon the next pod speaks on its connections and opens another.
const PACE: Duration = Duration::from_millis(5);
/// A pod has so many connections at most, and of these so many until they are cut.
const MOST: usize = 16;
const HELD: usize = 8;
/// Sockets that are made in advance, of each family.
const SPARE: usize = 60;
/// How long what is allowed may take to get through.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, from the end that opened it.
pub(crate) struct Stream {
    id: usize,
    from: usize,
    from_address: IpAddr,
    to: SocketAddr,
    through_service: bool,
    /// When it was opened.
    epoch: usize,
    socket: TcpStream,
    /// Who was heard at the other end.
    server: Option<usize>,
    /// The last knock that was heard there.
    heard: Option<usize>,
    /// Whether it was reset, or refused.
    ended: bool,
}

/// The sockets of a pod for all that.
#[derive(Default)]
pub(crate) struct Sockets {
    /// Of each family, not connected.
    spare: [Vec<Socket>; 2],
    listeners: Vec<TcpListener>,
    accepted: Vec<(TcpStream, Vec<u8>)>,
}

impl Sockets {
    /// In the network of the calling thread.
    pub(crate) fn new() -> io::Result<Sockets> {
        let listen = |address: IpAddr| {
            let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SocketAddr::new(address, PORT).into())?;
            socket.listen(64)?;
            socket.set_nonblocking(true)?;
            Ok(TcpListener::from(socket))
        };
        let listeners =
            [listen(Ipv4Addr::UNSPECIFIED.into()), listen(Ipv6Addr::UNSPECIFIED.into())];
        let listeners = listeners.into_iter().collect::<io::Result<_>>()?;
        Ok(Sockets { spare: spare()?, listeners, accepted: Vec::new() })
    }

    pub(crate) fn few_are_left(&self) -> bool {
        self.spare.iter().any(|spare| spare.len() < SPARE / 2)
    }

    pub(crate) fn add(&mut self, more: [Vec<Socket>; 2]) {
        self.spare.iter_mut().zip(more).for_each(|(spare, more)| spare.extend(more));
    }

    /// The numbers of the knocks that have come.
    fn read(&mut self) -> Vec<usize> {
        let mut heard = Vec::new();
        for listener in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                self.accepted.push((stream, Vec::new()));
            }
        }
        self.accepted.retain_mut(|(stream, text)| {
            let mut buffer = [0; 512];
            let goes_on = loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break false,
                    Ok(length) => text.extend(&buffer[..length]),
                    Err(error) => break error.kind() == ErrorKind::WouldBlock,
                }
            };
            let whole = text.len() / 8 * 8;
            for knock in text.drain(..whole).collect::<Vec<_>>().chunks(8) {
                assert_eq!(knock[..4], MAGIC);
                heard.push(u32::from_be_bytes(knock[4..].try_into().unwrap()) as usize);
            }
            goes_on
        });
        heard
    }
}

/// Sockets of each family, in the network of the calling thread.
pub(crate) fn spare() -> io::Result<[Vec<Socket>; 2]> {
    let socket = |domain| {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // One that is closed is soon forgotten by all.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(socket)
    };
    let sockets = |domain| (0..SPARE).map(|_| socket(domain)).collect::<io::Result<Vec<_>>>();
    Ok([sockets(Domain::IPV4)?, sockets(Domain::IPV6)?])
}

impl World {
    /// Each pod in turn speaks on its connections, and opens another.
    pub(crate) fn speak(&self) {
        let mut turn = 0;
        while !self.over.load(Relaxed) {
            thread::sleep(PACE);
            let mut pods = self.pods.lock().unwrap();
            let mut knocks = self.knocks.lock().unwrap();
            let mut streams = self.streams.lock().unwrap();
            streams.retain(|stream| pods[stream.from].alive);
            let alive: Vec<usize> = (0..pods.len()).filter(|i| pods[*i].alive).collect();
            if alive.len() < 2 {
                continue;
            }
            turn += 1;
            let from = alive[turn % alive.len()];
            for stream in streams.iter_mut().filter(|stream| stream.from == from) {
                stream.knock(self.epoch.load(Relaxed), &mut knocks);
            }
            let own: Vec<usize> = streams
                .iter()
                .filter(|s| s.from == from && !s.ended)
                .map(|stream| stream.id)
                .collect();
            if own.len() >= MOST {
                streams.retain(|stream| stream.id != own[HELD]);
            }
            let family = turn / alive.len() % 2;
            let others = alive.iter().filter(|i| **i != from);
            let mut places: Vec<(IpAddr, bool)> =
                others.filter_map(|i| Some((*pods[*i].addresses.get(family)?, false))).collect();
            let service = self.service.lock().unwrap().get(family).copied();
            places.extend(service.into_iter().flat_map(|ip| [(ip, true); 4]));
            let own = pods[from].addresses.get(family).copied();
            let (Some(from_address), false) = (own, places.is_empty()) else { continue };
            let (to, through_service) = places[turn / alive.len() / 2 % places.len()];
            let Some(socket) = pods[from].streams.spare[family].pop() else { continue };
            let to = SocketAddr::new(to, PORT);
            let epoch = self.epoch.load(Relaxed);
            // Either it is on its way, or the next attempt to speak will show why not.
            let _ = socket.connect(&to.into());
            self.opened.fetch_add(1, Relaxed);
            streams.push(Stream {
                id: self.opened.load(Relaxed),
                from,
                from_address,
                to,
                through_service,
                epoch,
                socket: socket.into(),
                server: None,
                heard: None,
                ended: false,
            });
        }
    }

    /// Hears what is said on the connections.
    pub(crate) fn listen(&self) {
        while !self.over.load(Relaxed) {
            thread::sleep(Duration::from_millis(2));
            let mut pods = self.pods.lock().unwrap();
            let came: Vec<(usize, usize)> = pods
                .iter_mut()
                .enumerate()
                .flat_map(|(by, pod)| pod.streams.read().into_iter().map(move |n| (n, by)))
                .collect();
            drop(pods);
            if came.is_empty() {
                continue;
            }
            // It came before now.
            let epoch = self.epoch.load(Relaxed);
            let knocks = self.knocks.lock().unwrap();
            let mut streams = self.streams.lock().unwrap();
            for (number, by) in &came {
                let id = knocks[*number].stream;
                if let Some(stream) = streams.iter_mut().find(|stream| Some(stream.id) == id) {
                    stream.server = Some(*by);
                    stream.heard = Some(*number);
                }
            }
            drop((streams, knocks));
            let came = came.into_iter().map(|(number, by)| (number, by, epoch));
            self.heard.lock().unwrap().extend(came);
        }
    }

    /// Waits until all has come through that every state since it was opened allows: connections that
    /// are held, and new ones. Returns how many there were of each that had to, and through the
    /// Service.
    pub(crate) fn settled(&self, states: &[Vec<State>]) -> Result<[usize; 3], String> {
        let now = self.epoch.load(Relaxed);
        let since = self.knocks.lock().unwrap().len();
        let (required, services) = {
            let (pods, streams) = (self.pods.lock().unwrap(), self.streams.lock().unwrap());
            let must = streams.iter().filter(|s| s.must_be_heard(&pods, &states[s.epoch..]));
            let required: Vec<(usize, bool)> =
                must.map(|stream| (stream.id, stream.epoch < now)).collect();
            (required, self.clients_of_the_service(&pods, &states[now - 1..]))
        };
        let start = Instant::now();
        loop {
            let (pods, streams) = (self.pods.lock().unwrap(), self.streams.lock().unwrap());
            // One that its own pod has closed meanwhile is none.
            let waits = |id: &usize| streams.iter().find(|s| s.id == *id && s.heard < Some(since));
            let lost = required.iter().find_map(|(id, _)| waits(id));
            let reached = |(client, family): &(usize, usize)| {
                streams.iter().any(|s| {
                    let this = s.from == *client && usize::from(s.to.is_ipv6()) == *family;
                    this && s.through_service && s.epoch == now && s.heard.is_some()
                })
            };
            let not_reached = services.iter().find(|client| !reached(client));
            let why = match (lost, not_reached) {
                (None, None) => {
                    drop(streams);
                    // Those that were not heard may not be, and try for long.
                    self.streams.lock().unwrap().retain(|s| !s.ended && s.heard.is_some());
                    let held = required.iter().filter(|(_, held)| *held).count();
                    return Ok([held, required.len() - held, services.len()]);
                }
                (Some(stream), _) => format!(
                    "{} ({}) to {} does not get through, opened in epoch {}, {}, since then all states \
                     allow it",
                    pods[stream.from].name,
                    stream.from_address,
                    stream.to,
                    stream.epoch,
                    if stream.ended { "reset" } else { "silent" },
                ),
                (None, Some((client, family))) => {
                    format!("{} does not reach the Service ({family})", pods[*client].name)
                }
            };
            // What has been reset never gets through.
            if lost.is_some_and(|stream| stream.ended) || start.elapsed() > PATIENCE {
                return Err(why);
            }
            drop((pods, streams));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Pods that have to reach the Service, by families: whichever of its endpoints they get, of this
    /// state or of the one before, it is another pod and allowed.
    fn clients_of_the_service(&self, pods: &[Pod], states: &[Vec<State>]) -> Vec<(usize, usize)> {
        let [.., last] = states else { return Vec::new() };
        let Some(last) = last.last().filter(|state| !state.backends.is_empty()) else {
            return Vec::new();
        };
        let all: BTreeSet<&String> =
            states.iter().flatten().flat_map(|state| &state.backends).collect();
        let servers: Vec<&Pod> =
            pods.iter().filter(|pod| pod.alive && all.contains(&pod.name)).collect();
        let reaches = |client: &Pod, family: usize| {
            servers.len() == all.len()
                && servers.iter().all(|server| {
                    let ends = [client, server].map(|pod| pod.addresses.get(family).copied());
                    let [Some(from), Some(to)] = ends else { return false };
                    client.uid != server.uid && last.lets(from, client, to, server)
                })
        };
        let clients = pods.iter().enumerate().filter(|(_, pod)| pod.alive);
        let both = clients.flat_map(|(index, pod)| [(index, pod, 0), (index, pod, 1)]);
        both.filter(|(_, pod, family)| reaches(pod, *family)).map(|(i, _, f)| (i, f)).collect()
    }
}

impl State {
    /// Whether both ends let the connection pass.
    fn lets(&self, from_address: IpAddr, from: &Pod, to_address: IpAddr, to: &Pod) -> bool {
        let knock = Knock { from_address, to: to_address, ..Knock::tcp(PORT) };
        Direction::ALL.iter().all(|d| self.passes(&knock, from, to, *d) == Some(true))
    }
}

impl Stream {
    /// Says something, if it is open.
    fn knock(&mut self, epoch: usize, knocks: &mut Vec<Knock>) {
        if self.ended {
            return;
        }
        let number = knocks.len();
        let text = [&MAGIC[..], &(number as u32).to_be_bytes()].concat();
        match self.socket.write(&text) {
            Ok(8) => knocks.push(Knock {
                epoch,
                from: self.from,
                from_address: self.from_address,
                to: self.to.ip(),
                through_service: self.through_service,
                stream: Some(self.id),
                ..Knock::tcp(PORT)
            }),
            Ok(length) => panic!("{length} bytes of 8 fit"),
            // Not connected yet, or what it has said before waits to be heard.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Whether all states since it was opened let it pass.
    fn must_be_heard(&self, pods: &[Pod], states: &[Vec<State>]) -> bool {
        let server = match self.server {
            Some(server) => Some(&pods[server]),
            None if self.through_service => None,
            None => pods.iter().find(|pod| pod.alive && pod.addresses.contains(&self.to.ip())),
        };
        let Some(server) = server.filter(|server| server.alive) else { return false };
        let from = &pods[self.from];
        let to = server.addresses.get(usize::from(self.to.is_ipv6()));
        let Some(to) = to.filter(|_| from.uid != server.uid) else { return false };
        states.iter().flatten().all(|state| state.lets(self.from_address, from, *to, server))
    }
}

impl Knock {
    /// Something said on a connection to a port.
    fn tcp(port: u16) -> Knock {
        Knock {
            at: Instant::now(),
            epoch: 0,
            from: 0,
            from_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port,
            protocol: Protocol::Tcp,
            through_service: false,
            stream: None,
        }
    }
}
