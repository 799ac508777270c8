//! The cluster as far as the API server has told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_cni::protocol::Held;
use portcullis_core::incremental::{Excerpt, NodeProgram};
use portcullis_core::model::Mode;
use portcullis_core::net::IpNet;
use portcullis_kube::live::{Event, Kind, Known, Object, Version};

/// What follows for one node from what was heard of the cluster. It depends on what the last events
/// of each object said and on nothing else: not on their order, number, or what came before.
#[derive(Debug)]
pub struct Observed {
    /// The name of the node.
    node: String,
    /// Its `podCIDRs`, as last heard of.
    pod_cidrs: Vec<IpNet>,
    program: NodeProgram,
    complete: [bool; Kind::ALL.len()],
    /// While a kind is being listed: what has come of it, by namespace and name.
    listed: [Option<BTreeSet<(String, String)>>; Kind::ALL.len()],
    /// `metadata.uid` of the pods of the node, by namespace and name.
    uids: BTreeMap<(String, String), String>,
    /// Which versions of the policies these are, by namespace and name.
    versions: BTreeMap<(String, String), Version>,
    /// What is wrong with policies, by namespace and name.
    unreadable: BTreeMap<(String, String), Vec<String>>,
}

/// What concerns connections between two addresses.
#[derive(Debug)]
pub(crate) struct Concern {
    pub(crate) excerpt: Excerpt,
    /// `metadata.uid` of the source and the destination, empty for what is no pod of this node.
    pub(crate) uids: [String; 2],
}

impl Observed {
    /// Nothing has been heard yet.
    pub fn new(node: &str) -> Observed {
        Observed {
            node: node.to_owned(),
            pod_cidrs: Vec::new(),
            program: NodeProgram::new(node),
            complete: Default::default(),
            listed: Default::default(),
            uids: BTreeMap::new(),
            versions: BTreeMap::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// Takes an event in. Tells whether anything is different now.
    pub fn hear(&mut self, event: Event) -> bool {
        match event {
            Event::Listing(kind) => {
                self.listed[kind as usize] = Some(BTreeSet::new());
                false
            }
            Event::Listed(kind) => self.sweep(kind),
            Event::Applied(object) => self.put(object),
            Event::Deleted(kind, namespace, name) => self.delete(kind, &namespace, &name),
            Event::Failed(..) => false,
        }
    }

    /// What the node must enforce, once all of the cluster has been told. Before that, half of a
    /// state would be taken for all of it: policies without the pods that they allow.
    pub fn program(&mut self) -> Option<&mut NodeProgram> {
        self.complete.iter().all(|complete| *complete).then_some(&mut self.program)
    }

    /// What concerns connections between two addresses, and the uids of the pods of this node that
    /// have them.
    pub(crate) fn excerpt(&self, source: IpAddr, destination: IpAddr) -> Concern {
        let excerpt = self.program.excerpt(source, destination);
        let uid = |(namespace, name): (&str, &str)| {
            self.uids.get(&(namespace.to_owned(), name.to_owned())).cloned()
        };
        let uids = excerpt.pods().map(|pod| pod.and_then(uid).unwrap_or_default());
        Concern { excerpt, uids }
    }

    /// The `podCIDRs` of the node.
    pub(crate) fn pod_cidrs(&self) -> &[IpNet] {
        &self.pod_cidrs
    }

    /// How many objects have been listed of a kind so far; `None` if it is not being listed.
    pub(crate) fn listed(&self, kind: Kind) -> Option<usize> {
        self.listed[kind as usize].as_ref().map(BTreeSet::len)
    }

    /// The policies that cannot be understood, each with what is wrong with it. They isolate what
    /// they select, and what cannot be read of them allows nothing (SEMANTICS 22).
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str, &[String])> {
        let unreadable = self.unreadable.iter();
        unreadable.map(|((namespace, name), why)| (&**namespace, &**name, &**why))
    }

    /// The policies that select pods of the node, or one of them, as they were heard of last. A new
    /// version need not change anything. In audit, all are.
    pub(crate) fn held(&self, only: Option<&(String, String)>, mode: Mode) -> Vec<Held> {
        let known = &self.program;
        let local = known.local_policies().into_iter();
        let asked = local.filter(|((namespace, name), _)| {
            only.is_none_or(|(a, b)| (a.as_str(), b.as_str()) == (*namespace, *name))
        });
        let held = asked.map(|((namespace, name), pods)| {
            let key = (namespace.to_owned(), name.to_owned());
            let Version { uid, generation, resource_version } =
                self.versions.get(&key).cloned().unwrap_or_default();
            let mode = mode.max(known.mode(namespace, name)).to_string();
            let addresses = only.map(|_| known.subjects(namespace, name)).unwrap_or_default();
            let (namespace, name) = key;
            Held { namespace, name, uid, generation, resource_version, mode, pods, addresses }
        });
        held.collect()
    }

    fn put(&mut self, object: Object) -> bool {
        let (namespace, name) = object.body.name();
        let name = (namespace.to_owned(), name.to_owned());
        if let Some(listed) = &mut self.listed[object.body.kind() as usize] {
            listed.insert(name.clone());
        }
        match object.body {
            Known::Namespace(name, labels, mode) => {
                self.program.namespace(&name, Some(labels), mode)
                    | self.program.namespace_log(&name, object.log)
            }
            Known::Pod(pod) => {
                let uid = &object.version.uid;
                match pod.node.as_ref() == Some(&self.node) {
                    true => _ = self.uids.insert(name, uid.clone()),
                    false => _ = self.uids.remove(&name),
                }
                self.program.pod_of_uid(&pod.namespace, &pod.name, uid, Some(&pod))
            }
            Known::Node(node) => {
                let moved = node.name == self.node && node.pod_cidrs != self.pod_cidrs;
                if moved {
                    self.pod_cidrs.clone_from(&node.pod_cidrs);
                }
                moved | self.program.node(&node.name, Some(&node.addresses))
            }
            Known::Policy(policy) => {
                let problems = object.problems;
                self.versions.insert(name.clone(), *object.version);
                let changed = self.program.policy(&name.0, &name.1, Some(policy));
                let reported = match problems.is_empty() {
                    true => self.unreadable.remove(&name).is_some(),
                    false => {
                        self.unreadable.insert(name, problems.clone()).as_ref() != Some(&problems)
                    }
                };
                changed | reported
            }
        }
    }

    fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        if let Some(listed) = &mut self.listed[kind as usize] {
            listed.remove(&(namespace.to_owned(), name.to_owned()));
        }
        match kind {
            Kind::Namespace => {
                self.program.namespace_log(name, None) | self.program.namespace(name, None, None)
            }
            Kind::Pod => {
                self.uids.remove(&(namespace.to_owned(), name.to_owned()));
                self.program.pod(namespace, name, None)
            }
            Kind::Node => self.program.node(name, None),
            Kind::Policy => {
                let key = (namespace.to_owned(), name.to_owned());
                self.versions.remove(&key);
                self.unreadable.remove(&key);
                self.program.policy(namespace, name, None)
            }
        }
    }

    /// A list has come to its end: what was not in it is no longer there.
    fn sweep(&mut self, kind: Kind) -> bool {
        let listed = self.listed[kind as usize].take().unwrap_or_default();
        let owned = |(namespace, name): (&str, &str)| (namespace.to_owned(), name.to_owned());
        let known: Vec<(String, String)> = match kind {
            Kind::Namespace => self.program.namespaces().map(|name| owned(("", name))).collect(),
            Kind::Pod => self.program.pods().map(owned).collect(),
            Kind::Node => self.program.nodes().map(|name| owned(("", name))).collect(),
            Kind::Policy => self.program.policies().map(owned).collect(),
        };
        let mut changed = !std::mem::replace(&mut self.complete[kind as usize], true);
        for (namespace, name) in known.iter().filter(|name| !listed.contains(*name)) {
            changed |= self.delete(kind, namespace, name);
        }
        changed
    }
}
