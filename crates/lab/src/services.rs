//! Services, as a node carries them out: a connection to one goes on to an endpoint behind it.
//!
//! [`table`] is a pure function of Services and EndpointSlices. [`ServiceTable`] puts what it gives
//! into the kernel, as a table of nf_tables of its own. Packets meet it in the order that kube-proxy
//! has: the destination is rewritten before the policies are asked, at `forward`, and the source
//! after, so that a policy judges the addresses of the two real ends.

mod encode;
mod table;

use std::net::IpAddr;

use portcullis_core::net::Protocol;
use portcullis_dataplane::Error;
use portcullis_dataplane::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use portcullis_dataplane::nf_tables::transaction;

pub use table::{Backends, Front, Table, table};

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "portcullis-services";

/// A Service: what its addresses and names depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.clusterIPs`, without `None`: a headless Service has no address.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: connections of one client go to one endpoint, as long as the
    /// endpoints stay the same. There is no timeout.
    pub sticky: bool,
    /// `internalTrafficPolicy: Local`: its own addresses lead to endpoints of the client's node alone.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`: a node port leads to endpoints of the node that is asked alone,
    /// and these see who asks.
    pub external_local: bool,
    /// `spec.externalName`, of a Service that is only another name.
    pub external_name: Option<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which the EndpointSlices call it; empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the addresses of the Service.
    pub port: u16,
    /// The port at the addresses of every node.
    pub node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The namespace of the slice and of its Service.
    pub namespace: String,
    /// The Service: the label `kubernetes.io/service-name`.
    pub service: String,
    /// The ports that all of its endpoints serve.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the Service's port; empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the endpoint.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `nodeName`.
    pub node: Option<String>,
    /// `conditions.ready`: connections go to those that are, and names stand for those that are.
    pub ready: bool,
    /// `hostname`, under which it has a name of its own.
    pub hostname: Option<String>,
}

/// The table of Services in the kernel of the network namespace in which this was opened. It owns
/// `inet portcullis-services` and touches nothing else.
#[derive(Debug)]
pub struct ServiceTable(NetlinkSocket);

impl ServiceTable {
    /// Works in the network namespace of the calling thread.
    pub fn open() -> Result<ServiceTable, Error> {
        NetlinkSocket::open(NETLINK_NETFILTER).map(ServiceTable)
    }

    /// Replaces what is in the kernel, in one transaction. Connections that are known stay with
    /// their endpoints. A table has to fit into one send of netlink: some hundred Services do in
    /// any case, [`Error::TooLarge`] says what to raise otherwise.
    pub fn apply(&mut self, table: &Table) -> Result<(), Error> {
        self.0.transaction(transaction(encode::requests(table)))
    }
}
