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
}

impl Witness {
    fn of(network: &Network) -> Witness {
        let [refused, allowed] = [53, 54].map(|port| network.pods[1].udp(address(TWO), port));
        refused.set_nonblocking(true).unwrap();
        // New links take up to a second to come up.
        allowed.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        Witness { client: network.pods[0].udp(address(ONE), 0), refused, allowed, number: 0 }
    }

    /// Sends one packet that is refused and one that is allowed. They go the same way, so that when
    /// the second has come the first one will not.
    fn look(&mut self) {
        self.number += 1;
        for port in [53, 54] {
            self.client.send_to(&self.number.to_be_bytes(), (address(TWO), port)).unwrap();
        }
        let mut number = [0; 8];
        self.allowed.recv(&mut number).expect("an allowed packet arrives");
        assert_eq!(u64::from_be_bytes(number), self.number);
        assert!(self.refused.recv(&mut number).is_err(), "a refused packet arrived");
    }
}

/// A packet that half of each state would let pass never does; one that each lets pass by other rules
/// always does.
pub(crate) fn flips() {
    let network = Network::with_pods(2);
    let mut witness = Witness::of(&network);
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
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&states[0]).unwrap();
    witness.look();
    let (end, flips) = (AtomicBool::new(false), flip_count());
    let looks = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while !end.load(Relaxed) {
                witness.look();
            }
            witness.number
        });
        for flip in 1..=flips {
            nftables.apply(&states[flip % 2]).unwrap();
            nftables.tidy(false);
        }
        end.store(true, Relaxed);
        looking.join().unwrap()
    });
    eprintln!("{looks} looks at {flips} flips");
    assert!(looks > 10, "{looks} looks show nothing");
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
