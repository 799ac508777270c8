//! What one node must enforce, kept up to date change by change.
//!
//! It gives what a full compile gives, and a change costs what it changes. Pods that no rule can
//! tell apart are a class. A peer is kept up only while a policy of a pod of this node names it;
//! each class knows the peers that it is, so that the address of one more pod is one more element
//! in each of their sets, whatever the number of pods and policies. What only decides about other
//! nodes is remembered and never looked at.

mod claims;
mod excerpt;
mod logged;
mod peers;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::labels::Labels;
use crate::model::{ContainerPort, Direction, LogLevel, Mode, NAMESPACE_NAME_LABEL, Pod, Policy};
use crate::node::NodeState;
use claims::Claims;
pub use excerpt::Excerpt;
pub use logged::Logged;
use peers::{Peer, SetKey};

/// The policies, pods, namespaces and nodes of a cluster, and what follows for one of its nodes.
///
/// It depends on what was said last of each object, and on nothing else.
#[derive(Debug, Default)]
pub struct NodeProgram {
    node: String,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
    pods: Slots<PodRecord>,
    classes: Slots<Class>,
    claims: Claims,
    /// By numbers that are never used again, so that a class may go on to name what is gone.
    peers: FxHashMap<u32, Peer>,
    next_peer: u32,
    peer_of: FxHashMap<Arc<peers::PeerKey>, u32>,
    /// What came to the sets and went since they were last brought up to date, as 1 and -1.
    pending: Vec<(SetKey, IpAddr, i32)>,
    /// Classes of local pods whose rules have to be made again.
    stale: BTreeSet<u32>,
    origins: BTreeMap<u32, NodeOrigin>,
    state: NodeState,
    /// Changes whenever the rules of a local pod do.
    version: u64,
}

/// Where an allowance comes from: as [`Origin`](crate::program::Origin), by the policy's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeOrigin {
    /// The namespace of the policy.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The section of its spec.
    pub direction: Direction,
    /// Index of the rule in the section.
    pub rule: u32,
    /// Index of the peer in `from` or `to`; `None` where that is absent or empty.
    pub peer: Option<u32>,
    /// Index in `ports`; `None` where that is absent or empty.
    pub port: Option<u32>,
}

/// What is known of a namespace, and in it.
#[derive(Debug, Default)]
struct Namespace {
    /// `None` if it has no object.
    labels: Option<Labels>,
    /// The level that it says itself.
    log: Option<LogLevel>,
    /// That of its policies that say none.
    mode: Option<Mode>,
    pods: BTreeMap<Arc<str>, u32>,
    classes: FxHashMap<Arc<ClassKey>, u32>,
    policies: BTreeMap<Arc<str>, Stored>,
    /// The peers whose pods can be in this namespace.
    peers: BTreeSet<u32>,
}

#[derive(Debug)]
struct Stored {
    policy: Arc<Policy>,
    /// The numbers of its origins, as far as any were needed.
    origins: FxHashMap<rules::Place, u32>,
}

/// A pod, stripped to what can matter.
#[derive(Debug)]
struct PodRecord {
    namespace: Arc<str>,
    name: Arc<str>,
    /// `None` for a pod that policies do not know: `hostNetwork` or finished.
    class: Option<u32>,
    /// Those that it claims as a pod, or brings to its node if it is on the host network.
    addresses: Box<[IpAddr]>,
    local: bool,
    /// What its addresses are noted under in [`NodeState::owners`].
    owner: u64,
}

/// What tells pods of one namespace apart: their labels, and the ports that have names.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ClassKey {
    labels: Labels,
    ports: Vec<ContainerPort>,
}

#[derive(Debug)]
struct Class {
    namespace: Arc<str>,
    key: Arc<ClassKey>,
    pods: u32,
    local: u32,
    /// The sets that its addresses are in, ascending, and some that are gone. Of peers that are an
    /// `ipBlock`, those of its addresses that are in the block.
    sets: Vec<SetKey>,
    /// While it has local pods.
    profile: Option<LocalClass>,
}

#[derive(Debug)]
struct LocalClass {
    number: u32,
    /// The peers that its rules name.
    uses: BTreeSet<u32>,
    /// The policies that select it.
    policies: BTreeSet<Arc<str>>,
}

impl NodeProgram {
    /// Nothing is known yet. The node is known by its name.
    pub fn new(node: &str) -> NodeProgram {
        NodeProgram { node: node.to_owned(), ..NodeProgram::default() }
    }

    /// A namespace has these labels and says this mode, or has no object (any more), and so neither.
    /// Tells whether that is new.
    pub fn namespace(&mut self, name: &str, labels: Option<Labels>, mode: Option<Mode>) -> bool {
        let name = self.namespace_name(name);
        let Some(namespace) = self.namespaces.get_mut(&name) else { return false };
        let mode = mode.filter(|_| labels.is_some());
        let (other_labels, other_mode) = (namespace.labels != labels, namespace.mode != mode);
        if other_mode {
            namespace.mode = mode;
            let classes = namespace.classes.values().copied();
            self.stale.extend(classes.filter(|class| {
                self.classes.get(*class).is_some_and(|class| class.profile.is_some())
            }));
        }
        if other_labels {
            namespace.labels = labels;
            self.find_peers_of(&name);
        }
        self.drop_if_empty(&name);
        other_labels || other_mode
    }

    /// A pod is so, or is no longer there. Tells whether anything about it is new.
    pub fn pod(&mut self, namespace: &str, name: &str, pod: Option<&Pod>) -> bool {
        self.pod_of_uid(namespace, name, "", pod)
    }

    /// The same, by `metadata.uid`, which tells the pod from an earlier one of its name.
    pub fn pod_of_uid(
        &mut self,
        namespace: &str,
        name: &str,
        uid: &str,
        pod: Option<&Pod>,
    ) -> bool {
        let known = self.namespaces.get(namespace).and_then(|n| n.pods.get(name)).copied();
        if known.is_none() && pod.is_none() {
            return false;
        }
        let namespace = self.namespace_name(namespace);
        let class = pod.filter(|pod| !pod.host_network && !pod.finished);
        // The new class comes before the old one is left, so that nothing is made again if it is
        // the same one.
        let class = class.map(|pod| self.enter_class(&namespace, pod));
        let local = pod.is_some_and(|pod| pod.node.as_deref() == Some(&*self.node));
        let addresses: Box<[IpAddr]> = match pod {
            Some(pod) if class.is_some() => each_once(&pod.addresses),
            // Such a pod is its node to the network.
            Some(pod) if pod.host_network && !pod.finished && pod.node.is_some() => {
                each_once(&pod.addresses)
            }
            _ => Box::default(),
        };
        let parts = [&*namespace, name, uid].into_iter();
        let owner = number_of(parts.flat_map(|part| part.bytes().chain([0])));
        let same = known.and_then(|id| self.pods.get(id)).is_some_and(|old| {
            pod.is_some()
                && old.class == class
                && old.addresses == addresses
                && (old.local == local || class.is_none())
                && (old.owner == owner || !local)
        });
        if same {
            self.leave_class(class, false);
            return false;
        }
        if local && let Some(class) = class {
            self.now_local(class);
        }
        let old = known.map(|id| (id, self.withdraw(id)));
        match (pod, old) {
            (None, old) => {
                if let Some((id, _)) = old {
                    self.pods.remove(id);
                    if let Some(namespace) = self.namespaces.get_mut(&namespace) {
                        namespace.pods.remove(name);
                    }
                }
            }
            (Some(_), old) => {
                let id = match old {
                    Some((id, _)) => {
                        if let Some(record) = self.pods.get_mut(id) {
                            (record.class, record.addresses) = (class, addresses);
                            (record.local, record.owner) = (local, owner);
                        }
                        id
                    }
                    None => {
                        let name: Arc<str> = name.into();
                        let id = self.pods.add(PodRecord {
                            namespace: namespace.clone(),
                            name: name.clone(),
                            class,
                            addresses,
                            local,
                            owner,
                        });
                        if let Some(namespace) = self.namespaces.get_mut(&namespace) {
                            namespace.pods.insert(name, id);
                        }
                        id
                    }
                };
                self.announce(id);
            }
        }
        if let Some((_, (class, local))) = old {
            self.leave_class(class, local);
        }
        self.drop_if_empty(&namespace);
        true
    }

    /// A node has these addresses, or no object (any more). Tells whether that is new.
    pub fn node(&mut self, name: &str, addresses: Option<&[IpAddr]>) -> bool {
        let new = addresses.map(each_once);
        if self.nodes.get(name).map(Vec::as_slice) == new.as_deref() {
            return false;
        }
        let old = match new.clone() {
            Some(new) => self.nodes.insert(name.to_owned(), new.into_vec()),
            None => self.nodes.remove(name),
        };
        // First the new ones, so that what stays is not lost in between.
        for address in new.iter().flatten() {
            self.node_claims(*address);
        }
        for address in old.into_iter().flatten() {
            self.node_leaves(address);
        }
        true
    }

    /// A policy is so, or is no longer there. Tells whether that is new.
    pub fn policy(&mut self, namespace: &str, name: &str, policy: Option<Policy>) -> bool {
        let namespace = self.namespace_name(namespace);
        let Some(known) = self.namespaces.get_mut(&namespace) else { return false };
        let old = known.policies.get_mut(name);
        if old.as_deref().map(|stored| &*stored.policy) == policy.as_ref() {
            self.drop_if_empty(&namespace);
            return false;
        }
        let new = policy.map(Arc::new);
        let mut changed = Vec::from_iter(new.clone());
        match (old, new) {
            (Some(stored), Some(new)) => changed.push(std::mem::replace(&mut stored.policy, new)),
            (None, Some(policy)) => {
                let stored = Stored { policy, origins: FxHashMap::default() };
                known.policies.insert(name.into(), stored);
            }
            (_, None) => {
                if let Some(stored) = known.policies.remove(name) {
                    for origin in stored.origins.values() {
                        self.origins.remove(origin);
                    }
                    changed.push(stored.policy);
                }
            }
        }
        for (key, class) in &known.classes {
            let local = self.classes.get(*class).is_some_and(|class| class.profile.is_some());
            if local && changed.iter().any(|policy| policy.subject.matches(&key.labels)) {
                self.stale.insert(*class);
            }
        }
        self.drop_if_empty(&namespace);
        true
    }

    /// What the node must enforce now.
    pub fn state(&mut self) -> &NodeState {
        self.catch_up();
        &self.state
    }

    /// What the numbers of origins in the last [`state`](NodeProgram::state) stand for.
    pub fn origins(&self) -> &BTreeMap<u32, NodeOrigin> {
        &self.origins
    }

    /// A number that is another whenever the rules of a local pod are others, or their origins.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The policies that select pods of this node, as of the last state: by namespace and name, how
    /// many pods that are.
    pub fn local_policies(&self) -> BTreeMap<(&str, &str), usize> {
        let mut selecting = BTreeMap::new();
        for (_, class) in self.classes.iter() {
            for policy in class.profile.iter().flat_map(|local| &local.policies) {
                *selecting.entry((&*class.namespace, &**policy)).or_default() +=
                    class.local as usize;
            }
        }
        selecting
    }

    /// The addresses at which a policy selects pods of this node, as of the last state, ascending.
    pub fn subjects(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let classes = self.classes.iter().filter(|(_, class)| &*class.namespace == namespace);
        let local = classes.filter_map(|(_, class)| class.profile.as_ref());
        let selected = local.filter(|local| local.policies.contains(name));
        let mut numbers: BTreeSet<u32> = selected.map(|local| local.number).collect();
        numbers.extend(self.closed_for(&numbers));
        let endpoints = self.state.endpoints.iter();
        endpoints.filter(|(_, number)| numbers.contains(number)).map(|(a, _)| *a).collect()
    }

    /// The mode of a policy: its own, or that of its namespace (SEMANTICS 28).
    pub fn mode(&self, namespace: &str, name: &str) -> Mode {
        let known = self.namespaces.get(namespace);
        let own = known.and_then(|namespace| namespace.policies.get(name)?.policy.mode);
        own.or_else(|| known?.mode).unwrap_or_default()
    }

    /// How many classes of pods there are that rules can tell apart.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// How many pods there are, those on the host network and finished ones among them.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// How many policies there are.
    pub fn policy_count(&self) -> usize {
        self.namespaces.values().map(|namespace| namespace.policies.len()).sum()
    }

    /// Whether there is an object of the node.
    pub fn node_is_known(&self) -> bool {
        self.nodes.contains_key(&self.node)
    }

    /// The names of all nodes that have an object.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The namespaces that have an object.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let known = self.namespaces.iter().filter(|(_, namespace)| namespace.labels.is_some());
        known.map(|(name, _)| &**name)
    }

    /// The pods, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pods.iter().map(|(_, pod)| (&*pod.namespace, &*pod.name))
    }

    /// The policies, by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.namespaces.iter().flat_map(|(namespace, known)| {
            known.policies.keys().map(move |name| (&**namespace, &**name))
        })
    }

    /// The one copy of a namespace's name. The namespace is there from then on.
    fn namespace_name(&mut self, name: &str) -> Arc<str> {
        if let Some((name, _)) = self.namespaces.get_key_value(name) {
            return name.clone();
        }
        let name: Arc<str> = name.into();
        self.namespaces.insert(name.clone(), Namespace::default());
        self.find_peers_of(&name);
        name
    }

    fn drop_if_empty(&mut self, name: &Arc<str>) {
        let empty = self.namespaces.get(name).is_some_and(|namespace| {
            namespace.labels.is_none()
                && namespace.pods.is_empty()
                && namespace.policies.is_empty()
                && namespace.classes.is_empty()
        });
        if empty {
            self.namespaces.remove(name);
        }
    }

    /// The labels that selectors see (SEMANTICS 11).
    fn labels_of(&self, namespace: &str) -> Labels {
        let known = self.namespaces.get(namespace).and_then(|known| known.labels.clone());
        let mut labels = known.unwrap_or_default();
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), namespace.to_owned());
        labels
    }

    /// The class of a pod, of which it is one more.
    fn enter_class(&mut self, namespace: &Arc<str>, pod: &Pod) -> u32 {
        let key = ClassKey { labels: pod.labels.clone(), ports: pod.named_ports() };
        let known = self.namespaces.get(namespace).and_then(|n| n.classes.get(&key)).copied();
        let id = known.unwrap_or_else(|| {
            let key = Arc::new(key);
            let sets = self.sets_of(namespace, &key);
            let (namespace_name, profile) = (namespace.clone(), None);
            let (pods, local) = (0, 0);
            let class =
                Class { namespace: namespace_name, key: key.clone(), pods, local, sets, profile };
            let id = self.classes.add(class);
            if let Some(namespace) = self.namespaces.get_mut(namespace) {
                namespace.classes.insert(key, id);
            }
            id
        });
        if let Some(class) = self.classes.get_mut(id) {
            class.pods += 1;
        }
        id
    }

    /// The class has one pod less, of this node or another.
    fn leave_class(&mut self, id: Option<u32>, local: bool) {
        let Some(id) = id else { return };
        let Some(class) = self.classes.get_mut(id) else { return };
        class.pods -= 1;
        if local {
            class.local -= 1;
            if class.local == 0
                && let Some(profile) = class.profile.take()
            {
                self.stale.remove(&id);
                self.state.profiles.remove(&profile.number);
                self.version += 1;
                for peer in profile.uses {
                    self.release(peer);
                }
            }
        }
        let Some(class) = self.classes.get(id) else { return };
        if class.pods == 0 {
            let (namespace, key) = (class.namespace.clone(), class.key.clone());
            self.classes.remove(id);
            if let Some(namespace) = self.namespaces.get_mut(&namespace) {
                namespace.classes.remove(&key);
            }
        }
    }

    /// One more pod of the class is of this node.
    fn now_local(&mut self, id: u32) {
        let Some(class) = self.classes.get_mut(id) else { return };
        class.local += 1;
        if class.profile.is_none() {
            let taken = |number: u32| self.state.profiles.contains_key(&number);
            let number = number_for(&(&class.namespace, &class.key), taken);
            self.state.profiles.insert(number, Default::default());
            let (uses, policies) = (BTreeSet::new(), BTreeSet::new());
            class.profile = Some(LocalClass { number, uses, policies });
            self.stale.insert(id);
        }
    }

    /// Brings the state up to date.
    fn catch_up(&mut self) {
        // Making rules can make peers, and filling those can make ports of names known.
        loop {
            self.fill_sets();
            let Some(class) = self.stale.pop_first() else { break };
            self.make_rules(class);
        }
        self.close_disputed();
    }
}

/// A number for something that is the same wherever the same is asked for, as far as it is free.
fn number_for(thing: &impl std::hash::Hash, taken: impl Fn(u32) -> bool) -> u32 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    thing.hash(&mut hasher);
    let mut number = hasher.finish() as u32;
    while taken(number) {
        number = number.wrapping_add(1);
    }
    number
}

/// A number for what these bytes name, the same in every process: others keep it (FNV-1a).
fn number_of(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |number, byte| {
        (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn each_once(addresses: &[IpAddr]) -> Box<[IpAddr]> {
    let mut once = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !once.contains(address) {
            once.push(*address);
        }
    }
    once.into()
}

/// Things by a number, which is used again when they are gone.
#[derive(Debug)]
struct Slots<T> {
    things: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { things: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn add(&mut self, thing: T) -> u32 {
        match self.free.pop() {
            Some(id) => {
                self.things[id as usize] = Some(thing);
                id
            }
            None => {
                self.things.push(Some(thing));
                self.things.len() as u32 - 1
            }
        }
    }

    fn len(&self) -> usize {
        self.things.len() - self.free.len()
    }

    fn get(&self, id: u32) -> Option<&T> {
        self.things.get(id as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.things.get_mut(id as usize)?.as_mut()
    }

    fn remove(&mut self, id: u32) -> Option<T> {
        let thing = self.things.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(thing)
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.things).filter_map(|(id, thing)| Some((id, thing.as_ref()?)))
    }
}
