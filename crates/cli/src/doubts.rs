//! What is not known that answers about whole clusters depend on.

use std::collections::BTreeSet;

use portcullis_core::Program;
use portcullis_core::model::Cluster;
use portcullis_core::net::Traffic;
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Fact, Role};

use crate::groups::{Groups, Members};

/// Facts that are missing, each once.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    namespaces: BTreeSet<String>,
    addresses: BTreeSet<usize>,
    ports: BTreeSet<usize>,
    nodes: BTreeSet<usize>,
}

impl Doubts {
    /// Adds what keeps it from being known whether one end may open this to another, and gives
    /// it in words. `number` is what groups call a pod of the cluster.
    pub(crate) fn add(
        &mut self,
        (cluster, program): (&Cluster, &Program),
        ends: [End; 2],
        more: &PortSet,
        number: impl Fn(usize) -> usize,
    ) {
        let traffic = match more {
            PortSet::Everything => Traffic::Other,
            PortSet::Ports(ports) => match ports.first() {
                Some(ports) => Traffic::Port(ports.protocol, ports.last),
                None => return,
            },
        };
        for path in program.paths(ends[0], ends[1]) {
            for fact in program.missing(&path, traffic) {
                let role = match fact {
                    Fact::NamespaceLabels(role) | Fact::Address(role) | Fact::Node(role) => role,
                    Fact::Ports => Role::Destination,
                };
                let end = if role == Role::Source { ends[0] } else { ends[1] };
                let End::Pod(pod) = end else { continue };
                _ = match fact {
                    Fact::NamespaceLabels(_) => {
                        self.namespaces.insert(cluster.pods[pod].namespace.clone())
                    }
                    Fact::Address(_) => self.addresses.insert(number(pod)),
                    Fact::Node(_) => self.nodes.insert(number(pod)),
                    Fact::Ports => self.ports.insert(number(pod)),
                };
            }
        }
    }

    /// A sentence for each kind of fact.
    pub(crate) fn sentences(&self, groups: &Groups) -> Vec<String> {
        let pods = |pods: &BTreeSet<usize>| {
            let pods = pods.iter().copied().collect();
            groups.describe(&Members { pods, addresses: Vec::new() })
        };
        let namespaces = self.namespaces.iter().cloned().collect::<Vec<_>>();
        let facts = [
            ("the labels of namespaces that have no object in the input", namespaces),
            ("the addresses of pods that have none yet (see --pod-cidr)", pods(&self.addresses)),
            ("the ports of pods of which the input has no containers", pods(&self.ports)),
            ("the nodes of pods that have none yet", pods(&self.nodes)),
        ];
        let some = facts.into_iter().filter(|(_, of)| !of.is_empty());
        some.map(|(what, of)| format!("{what}: {}", shortened(of).join(", "))).collect()
    }

    /// What is to be read below a table; nothing where nothing is missing.
    pub(crate) fn footnote(&self, groups: &Groups) -> String {
        let sentences = self.sentences(groups);
        sentences.iter().map(|sentence| format!("? depends on {sentence}\n")).collect()
    }
}

/// Most names in a sentence.
const MOST: usize = 6;

/// The first of many names, and how many more there are.
pub(crate) fn shortened(mut names: Vec<String>) -> Vec<String> {
    if names.len() > MOST {
        let more = names.len() + 1 - MOST;
        names.truncate(MOST - 1);
        names.push(format!("… and {more} more"));
    }
    names
}

/// What is sure, and with a question mark what is not.
pub(crate) fn shown(surely: &PortSet, perhaps: &PortSet) -> String {
    let doubtful = match perhaps.without(surely) {
        _ if surely == perhaps => return surely.to_string(),
        PortSet::Everything => "everything?".to_owned(),
        PortSet::Ports(ports) => {
            let by_protocol = ports.chunk_by(|a, b| a.protocol == b.protocol);
            let shown = by_protocol.map(|ports| format!("{}?", PortSet::Ports(ports.to_vec())));
            shown.collect::<Vec<_>>().join(", ")
        }
    };
    if surely.is_nothing() { doubtful } else { format!("{surely}, {doubtful}") }
}

/// What is told of each family, where the two differ; nothing of one that has nothing to tell.
pub(crate) fn by_family(families: [Option<String>; 2]) -> String {
    match families {
        [Some(v4), Some(v6)] => format!("IPv4: {v4}; IPv6: {v6}"),
        [Some(v4), None] => format!("{v4} on IPv4"),
        [None, Some(v6)] => format!("{v6} on IPv6"),
        [None, None] => String::new(),
    }
}
