//! What the container runtime says of this node's pods, which it knows before the API server does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_cni::protocol::Attachment;
use portcullis_core::model::Pod;
use portcullis_kube::live::{Event, Kind, Known, Object};

/// Who has which address on this node.
///
/// It stands between the API server and what is [observed](crate::Observed) of it: of a pod of this
/// node, the addresses are those that the runtime has given it, also if the API server does not say
/// so yet, and none that the runtime has given to another, also if the API server still says so.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    node: String,
    /// By address: its last pod's attachment.
    owners: BTreeMap<IpAddr, Attachment>,
    /// The pods of this node as the API server tells them, by namespace and name.
    told: BTreeMap<(String, String), Object>,
    /// While pods are being listed: those of this node that have come.
    listed: Option<BTreeSet<(String, String)>>,
}

impl Attached {
    pub(crate) fn new(node: &str) -> Attached {
        Attached { node: node.to_owned(), ..Attached::default() }
    }

    /// What an event of the API server means, together with what the runtime has said, and what
    /// follows from it besides.
    pub(crate) fn hear(&mut self, event: Event) -> (Event, Vec<Event>) {
        let mut more = Vec::new();
        let event = match event {
            Event::Applied(object) => Event::Applied(self.told_of(object)),
            Event::Deleted(Kind::Pod, namespace, name) => {
                let name = (namespace, name);
                self.told.remove(&name);
                if let Some(listed) = &mut self.listed {
                    listed.remove(&name);
                }
                Event::Deleted(Kind::Pod, name.0, name.1)
            }
            Event::Listing(Kind::Pod) => {
                self.listed = Some(BTreeSet::new());
                event
            }
            Event::Listed(Kind::Pod) => {
                // Of those that were told again because an address of theirs went to another, the
                // listener cannot know that the list does not have them.
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.told.extract_if(.., |name, _| !listed.contains(name));
                more.extend(gone.map(|((ns, name), _)| Event::Deleted(Kind::Pod, ns, name)));
                event
            }
            other => other,
        };
        (event, more)
    }

    /// The runtime has given the attachment's addresses to its pod. Returns what is new of pods.
    pub(crate) fn attach(&mut self, attachment: &Attachment) -> Vec<Event> {
        let mut touched = vec![attachment.clone()];
        for address in &attachment.addresses {
            touched.extend(self.owners.insert(*address, attachment.clone()));
        }
        self.changed(&touched)
    }

    /// The pod has them no longer. Returns what is new of pods.
    pub(crate) fn detach(&mut self, container: &str, interface: &str) -> Vec<Event> {
        let mut touched = Vec::new();
        self.owners.retain(|_, owner| {
            let stays = (&*owner.container, &*owner.interface) != (container, interface);
            if !stays {
                touched.push(owner.clone());
            }
            stays
        });
        self.changed(&touched)
    }

    /// Whether the API server has told of this pod.
    pub(crate) fn knows(&self, attachment: &Attachment) -> bool {
        let name = (attachment.namespace.clone(), attachment.pod.clone());
        self.told.get(&name).is_some_and(|object| is_of(attachment, object))
    }

    /// Whether all addresses of the attachment are its pod's.
    pub(crate) fn has(&self, attachment: &Attachment) -> bool {
        let name = (attachment.namespace.clone(), attachment.pod.clone());
        let told = self.told.get(&name).filter(|object| is_of(attachment, object));
        let told = told.map(|object| self.with_its_own(object.clone()));
        attachment.addresses.iter().all(|address| match self.owners.get(address) {
            Some(owner) => owner.container == attachment.container,
            None => told.as_ref().is_some_and(|object| match &object.body {
                Known::Pod(pod) => pod.addresses.contains(address),
                _ => false,
            }),
        })
    }

    /// The addresses of pods that the API server has not told of: nobody knows yet which policies
    /// select them.
    pub(crate) fn strangers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let strangers = self.owners.iter().filter(|(_, owner)| !self.knows(owner));
        strangers.map(|(address, _)| *address)
    }

    /// Keeps a pod of this node in mind, and returns it with the addresses that it has.
    fn told_of(&mut self, object: Object) -> Object {
        let Known::Pod(pod) = &object.body else { return object };
        let name = (pod.namespace.clone(), pod.name.clone());
        if pod.node.as_deref() != Some(&*self.node) {
            self.told.remove(&name);
            return object;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(name.clone());
        }
        self.told.insert(name, object.clone());
        self.with_its_own(object)
    }

    /// The pod, as told, with the addresses that it has.
    fn with_its_own(&self, mut object: Object) -> Object {
        let told = object.clone();
        if let Known::Pod(Pod { addresses, host_network: false, .. }) = &mut object.body {
            addresses.retain(|address| self.owners.get(address).is_none_or(|o| is_of(o, &told)));
            for (address, owner) in &self.owners {
                if is_of(owner, &told) && !addresses.contains(address) {
                    addresses.push(*address);
                }
            }
        }
        object
    }

    /// The pods that these attachments can have made others.
    fn changed(&self, touched: &[Attachment]) -> Vec<Event> {
        let concerns = |object: &Object| {
            let Known::Pod(pod) = &object.body else { return false };
            touched.iter().any(|attachment| {
                is_of(attachment, object)
                    || attachment.addresses.iter().any(|address| pod.addresses.contains(address))
            })
        };
        let changed = self.told.values().filter(|object| concerns(object));
        changed.map(|object| Event::Applied(self.with_its_own(object.clone()))).collect()
    }
}

/// Whether this is the attachment's pod, and not another of its name, earlier or later.
fn is_of(attachment: &Attachment, object: &Object) -> bool {
    let known = &object.version.uid;
    let same = |uid: &String| known.is_empty() || uid == known;
    object.body.name() == (&*attachment.namespace, &*attachment.pod)
        && attachment.uid.as_ref().is_none_or(same)
}

#[cfg(test)]
mod tests {
    use portcullis_kube::live::Version;

    use super::*;

    fn pod(name: &str, uid: &str, addresses: &[&str]) -> Object {
        let body = Known::Pod(Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            node: Some("here".to_owned()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Pod::default()
        });
        let version = Version { uid: uid.to_owned(), ..Version::default() };
        Object { version: version.into(), ..Object::from(body) }
    }

    fn attachment(pod: &str, uid: &str, addresses: &[&str]) -> Attachment {
        Attachment {
            network: "net".to_owned(),
            container: format!("sandbox-of-{uid}"),
            interface: "eth0".to_owned(),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            uid: (!uid.is_empty()).then(|| uid.to_owned()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn told(attached: &mut Attached, object: Object) -> Event {
        attached.hear(Event::Applied(object)).0
    }

    /// Names and addresses of the pods that an event tells of.
    fn of(events: &[Event]) -> Vec<String> {
        let objects = events.iter().flat_map(|event| match event {
            Event::Applied(object) => std::slice::from_ref(object),
            _ => &[],
        });
        let text = objects.map(|object| match &object.body {
            Known::Pod(pod) => format!("{} {:?}", pod.name, pod.addresses),
            _ => String::new(),
        });
        text.collect()
    }

    #[test]
    fn a_pod_has_the_address_that_the_runtime_gave_it_before_the_server_says_so() {
        let mut attached = Attached::new("here");
        assert_eq!(of(&[told(&mut attached, pod("web", "1", &[]))]), ["web []"]);
        let of_web = attachment("web", "1", &["10.0.0.1"]);
        assert_eq!(of(&attached.attach(&of_web)), ["web [10.0.0.1]"]);
        assert!(attached.has(&of_web));
        let told = told(&mut attached, pod("web", "1", &["10.0.0.1"]));
        assert_eq!(of(&[told]), ["web [10.0.0.1]"]);
        assert_eq!(attached.strangers().count(), 0);
    }

    #[test]
    fn an_address_that_goes_to_another_pod_is_the_first_ones_no_longer() {
        let mut attached = Attached::new("here");
        told(&mut attached, pod("old", "1", &["10.0.0.1"]));
        told(&mut attached, pod("new", "2", &[]));
        let news = attached.attach(&attachment("new", "2", &["10.0.0.1"]));
        assert_eq!(of(&news), ["new [10.0.0.1]", "old []"]);
        // The server is behind, and says again what was.
        let told = told(&mut attached, pod("old", "1", &["10.0.0.1"]));
        assert_eq!(of(&[told]), ["old []"]);
        // What was the old pod's is not taken from the new one.
        assert_eq!(of(&attached.detach("sandbox-of-1", "eth0")), [""; 0]);
        assert_eq!(of(&attached.detach("sandbox-of-2", "eth0")), ["new []", "old [10.0.0.1]"]);
    }

    #[test]
    fn a_pod_that_nobody_has_told_of_is_a_stranger_also_if_there_was_one_of_its_name() {
        let mut attached = Attached::new("here");
        told(&mut attached, pod("db-0", "1", &["10.0.0.1"]));
        let second = attachment("db-0", "2", &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(of(&attached.attach(&second)), ["db-0 []"]);
        assert!(!attached.knows(&second));
        assert_eq!(attached.strangers().count(), 2);
        let told = told(&mut attached, pod("db-0", "2", &[]));
        assert_eq!(of(&[told]), ["db-0 [10.0.0.1, 10.0.0.2]"]);
        assert_eq!(attached.strangers().count(), 0);
        // A runtime that does not say the uid means the pod that there is.
        assert!(attached.knows(&attachment("db-0", "", &[])));
    }

    #[test]
    fn pods_of_other_nodes_are_as_they_are_told() {
        let mut attached = Attached::new("here");
        attached.attach(&attachment("web", "1", &["10.0.0.1"]));
        let mut far = pod("web", "1", &["10.0.9.1"]);
        if let Known::Pod(pod) = &mut far.body {
            pod.node = Some("there".to_owned());
        }
        assert_eq!(of(&[told(&mut attached, far)]), ["web [10.0.9.1]"]);
        assert_eq!(attached.strangers().count(), 1);
    }

    #[test]
    fn a_pod_that_went_while_nothing_was_heard_is_gone_although_its_address_was_given_away() {
        let mut attached = Attached::new("here");
        told(&mut attached, pod("old", "1", &["10.0.0.1"]));
        attached.hear(Event::Listing(Kind::Pod));
        told(&mut attached, pod("new", "2", &[]));
        // Here the old pod is told again, without its address.
        let news = attached.attach(&attachment("new", "2", &["10.0.0.1"]));
        assert_eq!(of(&news), ["new [10.0.0.1]", "old []"]);
        let (_, more) = attached.hear(Event::Listed(Kind::Pod));
        assert_eq!(more, [Event::Deleted(Kind::Pod, "shop".to_owned(), "old".to_owned())]);
    }
}
