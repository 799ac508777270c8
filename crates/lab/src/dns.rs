//! The DNS server of the cluster: names of Services and pods below `cluster.local`, as the
//! Kubernetes specification of DNS-based service discovery has them.
//!
//! [`Zone`] says what there is, as plain data. [`DnsServer`] answers from it, over UDP and TCP, in
//! the network namespace in which it was started: names are resolved by real packets, and a policy
//! that forgets them breaks name resolution.
//!
//! No other name exists: nothing is asked of the network of this machine.

mod answer;
mod serve;
mod zone;

use std::net::IpAddr;

pub use answer::{Transport, answer};
pub use serve::DnsServer;
pub use zone::Zone;

/// Names of the cluster end so.
pub const DOMAIN: &str = "cluster.local";

/// `/etc/resolv.conf` of a pod in a namespace, as kubelet writes it.
pub fn resolv_conf(namespace: &str, server: IpAddr) -> String {
    format!(
        "search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\n\
         nameserver {server}\n\
         options ndots:5\n"
    )
}
