//! The cluster as far as the API server has told.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use portcullis_core::model::Cluster;
use portcullis_kube::live::{Event, Kind, Known, Object};

/// Everything that decides about connections, as last heard of. It depends on what the last events
/// of each object said and on nothing else: not on their order, number, or what came before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Policies, pods and nodes are sorted by namespace and name.
    cluster: Cluster,
    complete: [bool; Kind::ALL.len()],
    /// What is wrong with policies, by namespace and name.
    unreadable: BTreeMap<(String, String), Vec<String>>,
}

impl Observed {
    /// Takes an event in. Tells whether anything is different now.
    pub fn hear(&mut self, event: Event) -> bool {
        match event {
            Event::All(kind, objects) => self.replace(kind, objects),
            Event::Applied(object) => self.put(object),
            Event::Deleted(kind, namespace, name) => self.delete(kind, &namespace, &name),
            Event::Failed(..) => false,
        }
    }

    /// The cluster, once all of it has been told. Before that, half of a state would be taken for
    /// all of it: policies without the pods that they allow.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.complete.iter().all(|complete| *complete).then_some(&self.cluster)
    }

    /// The policies that cannot be understood, each with what is wrong with it. They isolate what
    /// they select, and what cannot be read of them allows nothing (SEMANTICS 22).
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str, &[String])> {
        let unreadable = self.unreadable.iter();
        unreadable.map(|((namespace, name), why)| (&**namespace, &**name, &**why))
    }

    fn replace(&mut self, kind: Kind, objects: Vec<Object>) -> bool {
        let first = !std::mem::replace(&mut self.complete[kind as usize], true);
        let Cluster { namespaces, pods, nodes, policies, .. } = &mut self.cluster;
        let changed = match kind {
            Kind::Namespace => {
                let new = objects.into_iter().filter_map(|object| match object.body {
                    Known::Namespace(name, labels) => Some((name, labels)),
                    _ => None,
                });
                replace(namespaces, new.collect())
            }
            Kind::Pod => {
                let new = objects.into_iter().filter_map(|object| match object.body {
                    Known::Pod(pod) => Some(pod),
                    _ => None,
                });
                replace(pods, in_order(new, |pod| (&pod.namespace, &pod.name)))
            }
            Kind::Node => {
                let new = objects.into_iter().filter_map(|object| match object.body {
                    Known::Node(node) => Some(node),
                    _ => None,
                });
                replace(nodes, in_order(new, |node| ("", &node.name)))
            }
            Kind::Policy => {
                let mut unreadable = BTreeMap::new();
                let new = objects.into_iter().filter_map(|object| match object.body {
                    Known::Policy(policy) => {
                        let name = (policy.namespace.clone(), policy.name.clone());
                        match object.problems.is_empty() {
                            true => unreadable.remove(&name),
                            false => unreadable.insert(name, object.problems),
                        };
                        Some(policy)
                    }
                    _ => None,
                });
                let new = in_order(new, |policy| (&policy.namespace, &policy.name));
                replace(policies, new) | replace(&mut self.unreadable, unreadable)
            }
        };
        first | changed
    }

    fn put(&mut self, object: Object) -> bool {
        let Cluster { namespaces, pods, nodes, policies, .. } = &mut self.cluster;
        match object.body {
            Known::Namespace(name, labels) => {
                namespaces.insert(name, labels.clone()).as_ref() != Some(&labels)
            }
            Known::Pod(pod) => put(pods, pod, |pod| (&pod.namespace, &pod.name)),
            Known::Node(node) => put(nodes, node, |node| ("", &node.name)),
            Known::Policy(policy) => {
                let name = (policy.namespace.clone(), policy.name.clone());
                let problems = object.problems;
                let reported = match problems.is_empty() {
                    true => self.unreadable.remove(&name).is_some(),
                    false => {
                        self.unreadable.insert(name, problems.clone()).as_ref() != Some(&problems)
                    }
                };
                put(policies, policy, |policy| (&policy.namespace, &policy.name)) | reported
            }
        }
    }

    fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        let Cluster { namespaces, pods, nodes, policies, .. } = &mut self.cluster;
        let key = (namespace, name);
        match kind {
            Kind::Namespace => namespaces.remove(name).is_some(),
            Kind::Pod => delete(pods, key, |pod| (&pod.namespace, &pod.name)),
            Kind::Node => delete(nodes, key, |node| ("", &node.name)),
            Kind::Policy => {
                self.unreadable.remove(&(namespace.to_owned(), name.to_owned()));
                delete(policies, key, |policy| (&policy.namespace, &policy.name))
            }
        }
    }
}

/// Tells whether the new one is another.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

/// Sorted, each name once: of several with one name, what was said last.
fn in_order<T>(objects: impl Iterator<Item = T>, name: impl Fn(&T) -> (&str, &str)) -> Vec<T> {
    let mut objects: Vec<T> = objects.collect();
    objects.sort_by(|a, b| name(a).cmp(&name(b)));
    // Of two equal neighbours, `dedup_by` drops the later.
    objects.reverse();
    objects.dedup_by(|a, b| name(a) == name(b));
    objects.reverse();
    objects.shrink_to_fit();
    objects
}

fn find<T>(
    sorted: &[T],
    wanted: (&str, &str),
    name: impl Fn(&T) -> (&str, &str),
) -> Result<usize, usize> {
    sorted.binary_search_by(|object| -> Ordering { name(object).cmp(&wanted) })
}

fn put<T: PartialEq>(sorted: &mut Vec<T>, new: T, name: impl Fn(&T) -> (&str, &str)) -> bool {
    match find(sorted, name(&new), name) {
        Ok(index) => replace(&mut sorted[index], new),
        Err(index) => {
            sorted.insert(index, new);
            true
        }
    }
}

fn delete<T>(sorted: &mut Vec<T>, wanted: (&str, &str), name: impl Fn(&T) -> (&str, &str)) -> bool {
    let found = find(sorted, wanted, name);
    found.is_ok_and(|index| {
        sorted.remove(index);
        true
    })
}
