//! Between two states there is nothing else, whenever one looks and wherever it breaks off.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::Duration;

use portcullis_dataplane::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use portcullis_dataplane::state::{Entry, NodeState};
use portcullis_dataplane::{Dataplane, Nftables};

use crate::network::Network;
use crate::{
    ONE, TWO, address, addresses, both_ends, local_pods, node_state, profile_left, remote_pods,
    rules_and_sets, udp,
};

/// The most that one send has.
const SEND_BYTES: usize = 16_000;

/// How often one state follows the other: 300, or `PORTCULLIS_FLIPS`.
fn flip_count() -> usize {
    std::env::var("PORTCULLIS_FLIPS").map_or(300, |count| count.parse().unwrap())
}

/// Two pods; the states of a test refuse one port of the second one to the first one, and allow
/// another.
struct Witness {
    client: UdpSocket,
    refused: UdpSocket,
    allowed: UdpSocket,
    number: u64,
    /// How many allowed packets did not come in time.
    lost: u64,
}

impl Witness {
    fn of(network: &Network) -> Witness {
        let [refused, allowed] = [53, 54].map(|port| network.pods[1].udp(address(TWO), port));
        refused.set_nonblocking(true).unwrap();
        // New links take up to a second to come up.
        allowed.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        Witness {
            client: network.pods[0].udp(address(ONE), 0),
            refused,
            allowed,
            number: 0,
            lost: 0,
        }
    }

    /// Sends one packet that is refused and one that is allowed, which has to arrive.
    fn look(&mut self) {
        assert!(self.look_or_lose(), "an allowed packet arrives");
    }

    /// The same, where that may be lost. They go the same way, so that when the second has come the first
    /// one will not.
    fn look_or_lose(&mut self) -> bool {
        self.number += 1;
        for port in [53, 54] {
            self.client.send_to(&self.number.to_be_bytes(), (address(TWO), port)).unwrap();
        }
        let mut number = [0; 8];
        let mut arrived = self.allowed.recv(&mut number).is_ok();
        while arrived && u64::from_be_bytes(number) != self.number {
            assert!(self.lost > 0, "it is late, and was not taken for lost");
            arrived = self.allowed.recv(&mut number).is_ok();
        }
        assert!(self.refused.recv(&mut number).is_err(), "a refused packet arrived");
        self.lost += u64::from(!arrived);
        arrived
    }

    /// Looks until one state has followed the other [so often](flip_count). Returns how often it looked
    /// and how many packets did not come within some time.
    fn at_flips(mut self, states: &[NodeState; 2], patience: Duration) -> (u64, u64) {
        let mut nftables = Nftables::open().unwrap();
        nftables.apply(&states[0]).unwrap();
        self.look();
        self.allowed.set_read_timeout(Some(patience)).unwrap();
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let looking = scope.spawn(|| {
                while !end.load(Relaxed) {
                    self.look_or_lose();
                }
                (self.number, self.lost)
            });
            for flip in 1..=flip_count() {
                nftables.apply(&states[flip % 2]).unwrap();
                nftables.tidy(false);
            }
            end.store(true, Relaxed);
            let (looks, lost) = looking.join().unwrap();
            eprintln!("{looks} looks at {} flips, {lost} packets lost", flip_count());
            assert!(looks > 10, "{looks} looks show nothing");
            (looks, lost)
        })
    }
}

/// A packet that half of each state would let pass never does; one that each lets pass by other rules
/// always does.
pub(crate) fn flips() {
    let network = Network::with_pods(2);
    let by_address = |peer| udp(Some(peer), 54, 54);
    let by_port = udp(None, 50, 60);
    let nothing: &[Entry] = &[];
    let peers = [addresses(&[TWO, "10.7.0.1"]), addresses(&[ONE, "10.7.0.1"])];
    let pods = [(ONE, 0), (TWO, 1)];
    // One opens at the one end what the other opens at the other end.
    let wide = |end: &Entry| [by_port, *end];
    let narrow = |end: &Entry| [*end];
    let (out, into) = (by_address(0), by_address(1));
    let states = [
        node_state(&pods, &[(nothing, Some(&wide(&out))), (&narrow(&into), None)], &peers),
        node_state(&pods, &[(nothing, Some(&narrow(&out))), (&wide(&into), None)], &peers),
    ];
    let (_, lost) = Witness::of(&network).at_flips(&states, Duration::from_secs(3));
    assert_eq!(lost, 0);
}

/// A pod closes while the other end opens to it, and the other way round. Half of each state would let
/// the packet pass; one that is allowed can be lost.
pub(crate) fn policies_flip() {
    let network = Network::with_pods(2);
    for moves in [ONE, TWO] {
        let (every, some) = ([udp(None, 50, 60)], [udp(None, 54, 54)]);
        let nothing: &[Entry] = &[];
        let by_peer = [udp(Some(0), 53, 53), some[0]];
        let state = |profile: u32, peer: &str| {
            let pods = match moves {
                ONE => [(ONE, profile), (TWO, 2)],
                _ => [(ONE, 2), (TWO, profile)],
            };
            // The other pods keep what the policies need.
            let pods: Vec<_> = pods.into_iter().chain([("10.0.9.1", 0), ("10.0.9.2", 1)]).collect();
            let profiles = match moves {
                ONE => {
                    [(nothing, Some(&every[..])), (nothing, Some(&some[..])), (&by_peer[..], None)]
                }
                _ => [(&every[..], None), (&some[..], None), (nothing, Some(&by_peer[..]))],
            };
            node_state(&pods, &profiles, &[addresses(&["10.0.9.1", peer])])
        };
        let states = [state(0, "10.7.0.1"), state(1, moves)];
        let (looks, lost) = Witness::of(&network).at_flips(&states, Duration::from_millis(20));
        assert!(lost * 2 < looks, "{lost} of {looks} allowed packets were lost");
    }
}

/// From one state to the next, and from what that has left behind, with small sends, so that there are
/// many.
pub(crate) fn off() {
    let network = Network::with_pods(2);
    let mut witness = Witness::of(&network);
    let pairs: [fn() -> [NodeState; 2]; 5] =
        [local_pods, remote_pods, both_ends, rules_and_sets, profile_left];
    let mut messages = 0;
    for pair in pairs {
        let [before, after] = pair();
        let mut broken = 0;
        loop {
            let left = Arc::new(AtomicUsize::new(usize::MAX));
            let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).unwrap();
            socket.set_send_limit(SEND_BYTES).unwrap();
            socket.break_off_after(left.clone());
            let mut nftables = Nftables::over(socket);
            nftables.apply(&before).unwrap();
            nftables.tidy(true);
            witness.look();
            left.store(broken, Relaxed);
            let done = nftables.apply(&after);
            assert!(done.is_ok() || left.load(Relaxed) == 0, "{done:?} after {broken} messages");
            nftables.tidy(true);
            drop(nftables);
            witness.look();
            // Where that was within reach of the first one it is of the next one, too.
            let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).unwrap();
            socket.set_send_limit(SEND_BYTES).unwrap();
            socket.break_off_after(Arc::new(AtomicUsize::new(broken)));
            let _ = Nftables::over(socket).apply(&after);
            witness.look();
            let mut next = Nftables::open().unwrap();
            next.apply(&after).unwrap();
            next.tidy(true);
            witness.look();
            assert_eq!(next.compare(&after).unwrap(), []);
            // Removing what was left behind takes sends, too.
            if left.load(Relaxed) > 0 {
                break;
            }
            broken += 1;
        }
        messages += broken;
    }
    eprintln!("broken off at {messages} messages");
    assert!(messages > 10, "{messages} messages show nothing");
}
