//! What goes over the agent's Unix socket: a [`Request`] in a line of JSON, an [`Answer`] in another.
//! A connection may carry several, one after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::flow::{Filter, Flow, RuleHits};

/// The longest line, in bytes, with its end.
pub const LONGEST: usize = 64 * 1024;

/// The interface of a pod in a network, as the CNI specification has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The name of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`: the sandbox of the pod.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// The namespace of the pod.
    pub namespace: String,
    /// The name of the pod.
    pub pod: String,
    /// `metadata.uid` of the pod, if the runtime says it: two pods may have one name, one after the
    /// other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The addresses that the interface was given.
    pub addresses: Vec<IpAddr>,
}

/// What is asked of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// A pod of this node has been given addresses. Answered when the kernel isolates them:
    /// [`Answer::Enforced`], [`Answer::Closed`] or [`Answer::Failed`].
    Add(Attachment),
    /// The pod has them no longer. [`Answer::Done`], also if the agent does not know it.
    Delete {
        /// `CNI_CONTAINERID`.
        container: String,
        /// `CNI_IFNAME`.
        interface: String,
    },
    /// Are the pod's policies in force at its addresses? [`Answer::Enforced`] or
    /// [`Answer::Failed`].
    Check(Attachment),
    /// Can pods be added? [`Answer::Ready`], [`Answer::Unready`] or [`Answer::Failed`].
    Status,
    /// Which connections were refused or allowed? [`Answer::Flow`] for each, and in the end
    /// [`Answer::Done`].
    Observe {
        /// Which ones.
        #[serde(default)]
        filter: Filter,
        /// The most of those that have been; all that the agent still knows without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<usize>,
        /// Whether those that will be are told too. Then there is no end.
        #[serde(default)]
        follow: bool,
    },
    /// How often did each rule let connections pass? [`Answer::Hits`], as many times as it takes,
    /// and in the end [`Answer::Done`].
    Hits,
    /// Which policies does the kernel hold? [`Answer::Policies`], as many times as it takes, and in
    /// the end [`Answer::Done`]; or [`Answer::Failed`] while the kernel does not hold what the agent
    /// has heard.
    Policies {
        /// The namespace of the only one that is asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Its name. Of one alone the answer tells the addresses of its pods too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
}

impl Request {
    /// Whether the answer is all there is to it.
    pub fn only_reads(&self) -> bool {
        match self {
            Request::Add(_) | Request::Delete { .. } => false,
            Request::Check(_)
            | Request::Status
            | Request::Observe { .. }
            | Request::Hits
            | Request::Policies { .. } => true,
        }
    }
}

/// What a node's kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The name of the node.
    pub node: String,
    /// Whether connections that were open before have been judged by it, too.
    pub settled: bool,
    /// The NetworkPolicies that select pods of this node, by namespace and name.
    pub policies: Vec<Held>,
}

/// A NetworkPolicy that a node's kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.generation`, which changes with the spec; 0 if the server does not say one.
    pub generation: i64,
    /// `metadata.resourceVersion`
    pub resource_version: String,
    /// `enforce` or `audit`: its own mode, else that of its namespace, and that of the agent above
    /// both.
    pub mode: String,
    /// How many pods of this node it selects.
    pub pods: usize,
    /// The addresses of these, if it alone was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// The kernel enforces the policies of the pod at its addresses.
    Enforced,
    /// The kernel lets nothing to and from its addresses until the agent knows which policies
    /// select the pod.
    Closed {
        /// What the agent does not know.
        why: String,
    },
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
    /// Done.
    Done,
    /// Pods can be added.
    Ready,
    /// Pods cannot be added yet; what is in force stands.
    Unready {
        /// What the agent waits for.
        why: String,
    },
    /// A connection.
    Flow(Box<Flow>),
    /// So many connections could not be told, as whoever asked did not keep up.
    Missed {
        /// How many.
        count: u64,
    },
    /// Some of the rules, in the order of their names.
    Hits {
        /// The rules.
        rules: Vec<RuleHits>,
    },
    /// What the kernel holds, or a part of it.
    Policies(Holding),
}

/// Asks the agent that listens at this socket. Nothing is waited for longer than `patience`.
///
/// # Errors
/// Nobody listens there, it does not answer in time, or not with an [`Answer`].
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&line(request))?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST as u64)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up without an answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// A request or an answer as it goes over the socket.
pub fn line(message: &impl Serialize) -> Vec<u8> {
    // Neither has a map with keys that are no text, which is all that can fail.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_the_lines_that_the_documentation_shows() {
        let attachment = Attachment {
            network: "cbr0".to_owned(),
            container: "4c1d".to_owned(),
            interface: "eth0".to_owned(),
            namespace: "shop".to_owned(),
            pod: "web-0".to_owned(),
            uid: Some("6b1f".to_owned()),
            addresses: vec!["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        };
        let delete = Request::Delete { container: "4c1d".to_owned(), interface: "eth0".to_owned() };
        let why = || "the API server has not told of the pod".to_owned();
        let lines = [
            line(&Request::Add(attachment)),
            line(&delete),
            line(&Request::Status),
            line(&Answer::Enforced),
            line(&Answer::Closed { why: why() }),
        ];
        let page = include_str!("../../../docs/cni.md");
        for line in lines {
            let line = String::from_utf8(line).unwrap();
            assert!(page.contains(&line), "docs/cni.md does not have {line}");
        }
    }

    #[test]
    fn what_a_kernel_holds_is_told_in_the_lines_that_the_documentation_shows() {
        let (shop, db) = (Some("shop".to_owned()), Some("db".to_owned()));
        let held = Held {
            namespace: "shop".to_owned(),
            name: "db".to_owned(),
            uid: "6b1f".to_owned(),
            generation: 3,
            resource_version: "1207".to_owned(),
            mode: "enforce".to_owned(),
            pods: 2,
            addresses: Vec::new(),
        };
        let (node, policies) = ("node-1".to_owned(), vec![held]);
        let lines = [
            line(&Request::Policies { namespace: None, name: None }),
            line(&Request::Policies { namespace: shop, name: db }),
            line(&Answer::Policies(Holding { node, settled: true, policies })),
            line(&Answer::Done),
        ];
        let page = include_str!("../../../docs/status.md");
        for line in lines {
            let line = String::from_utf8(line).unwrap();
            assert!(page.contains(&line), "docs/status.md does not have {line}");
        }
    }

    #[test]
    fn a_line_that_is_read_is_the_one_that_was_written() {
        for request in [
            Request::Status,
            Request::Delete { container: "a".to_owned(), interface: "b".to_owned() },
        ] {
            assert_eq!(serde_json::from_slice::<Request>(&line(&request)).unwrap(), request);
        }
    }
}
