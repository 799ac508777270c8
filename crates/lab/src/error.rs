//! What can go wrong with a lab.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use portcullis_core::net::Family;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`enter`](crate::enter) was called too late.
    #[error(
        "a lab must enter its namespaces while the process has one thread, but it has {threads}"
    )]
    Threads {
        /// How many threads there are.
        threads: usize,
    },
    /// The system does not let this user make namespaces.
    #[error(
        "cannot make the lab's own namespaces: {step}: {source}\n\
         The lab needs user namespaces, and this system forbids them to this user. Either run it \
         as root (sudo), or have root allow them, whichever of these the system has:\n  \
         sysctl -w kernel.unprivileged_userns_clone=1\n  \
         sysctl -w user.max_user_namespaces=10000\n  \
         sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    Forbidden {
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Two owners have one address.
    #[error("{address} belongs to {first} and to {second}: an address can have one owner")]
    DuplicateAddress {
        /// The address.
        address: IpAddr,
        /// Who has it, by name.
        first: String,
        /// Who has it too.
        second: String,
    },
    /// An address of the input can be nobody's: loopback, link-local, multicast and the like.
    #[error("{owner} cannot have the address {address}: it is not a unicast address of a host")]
    UnusableAddress {
        /// The address.
        address: IpAddr,
        /// Who has it in the input.
        owner: String,
    },
    /// A host outside was asked for at an address that the input gives to somebody.
    #[error("there can be no host outside at {address}: the address belongs to {owner}")]
    HostTaken {
        /// The address.
        address: IpAddr,
        /// Who has it in the input.
        owner: String,
    },
    /// A host outside was asked for in a family that the lab does not have.
    #[error("there can be no host outside at {address}: the lab has no {family}")]
    HostOfOtherFamily {
        /// The address.
        address: IpAddr,
        /// Its family.
        family: Family,
    },
    /// More pods or nodes than the lab has addresses to give.
    #[error("no {family} address is left for {owner}")]
    NoAddressLeft {
        /// The family.
        family: Family,
        /// Who was to have one.
        owner: String,
    },
    /// A node has as many pods as its ranges have addresses.
    #[error("{node} has no address left for another pod")]
    NodeFull {
        /// The node.
        node: String,
    },
    /// A node does not enforce.
    #[error("the agent of {node} is not ready: {why}")]
    NotReady {
        /// The node.
        node: String,
        /// What the agent says.
        why: String,
    },
    /// A node's kernel does not have what the state of the cluster asks for.
    #[error("{node} does not enforce the present state after {seconds} s: {difference}")]
    Unsettled {
        /// The node.
        node: String,
        /// How long it was waited for.
        seconds: u64,
        /// The first difference.
        difference: String,
    },
    /// The API server.
    #[error(transparent)]
    Server(#[from] portcullis_apiserver::Error),
    /// More nodes than a lab can have.
    #[error("a lab has at most {most} nodes, but {nodes} are wanted")]
    TooManyNodes {
        /// How many are wanted.
        nodes: u32,
        /// How many there can be.
        most: u32,
    },
    /// The plan has no such node.
    #[error("the lab has {nodes} nodes, so none has the index {node}")]
    NoSuchNode {
        /// The index that was asked for.
        node: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A node's kernel did not take the policies, or did not say what it counted.
    #[error("the kernel of node {node}: {source}")]
    Kernel {
        /// The node.
        node: String,
        /// What went wrong.
        source: portcullis_dataplane::Error,
    },
    /// The counters of a namespace could not be read.
    #[error("cannot read how many packets {owner} has received: {source}")]
    Statistics {
        /// Whose namespace.
        owner: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A network namespace could not be made or entered.
    #[error("cannot {step} a network namespace: {source}")]
    Namespace {
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A kernel setting of a namespace could not be made.
    #[error("cannot write {value} to {} in the namespace of {owner}: {source}", path.display())]
    Setting {
        /// Whose namespace.
        owner: String,
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Links, addresses or routes of a namespace could not be made.
    #[error("cannot set up the network of {owner}: {source}")]
    Network {
        /// Whose namespace.
        owner: String,
        /// What the kernel answered.
        source: portcullis_dataplane::Error,
    },
    /// Links stayed without carrier.
    #[error("the links of {owner} did not come up within {seconds} s")]
    LinksDown {
        /// Whose namespace.
        owner: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The limit of open files is too low for so many sockets.
    #[error(
        "this needs {needed} open files, and the hard limit is {limit}: raise it (ulimit -Hn), or \
         use fewer pods or ports"
    )]
    TooManyFiles {
        /// How many files would be open.
        needed: usize,
        /// How many may be.
        limit: usize,
    },
    /// A socket of a responder or of the lab itself could not be made or used.
    #[error("cannot {step}: {source}")]
    Socket {
        /// What was being done.
        step: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A lab of this name is running already.
    #[error("a lab named {name} is running already: end it with `lab down`, or use another --name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No lab of this name is running.
    #[error("no lab named {name} is running: start one with `lab up`")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// The other end of the control socket belongs to somebody else.
    #[error("the lab named {name} belongs to the user with the id {uid}, not to you")]
    OtherUser {
        /// The name.
        name: String,
        /// The other user.
        uid: u32,
    },
}

impl Error {
    pub(crate) fn socket(step: &str, source: impl Into<io::Error>) -> Error {
        Error::Socket { step: step.to_owned(), source: source.into() }
    }
}
