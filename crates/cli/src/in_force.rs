//! What the kernels of the nodes hold, beside what the API server says that they should.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_cni::protocol::{Answer, Held, Holding, Request};
use portcullis_core::model::{Mode, Pod, Policy};
use portcullis_kube::live::{Known, Object, Version};

use crate::agents::Line;
use crate::output::plural;

/// A NetworkPolicy as the API server has it, and the pods that it selects.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: Version,
    /// Its own mode, or else that of its namespace.
    pub(crate) mode: Mode,
    /// By node: the pods that it selects there.
    pub(crate) nodes: BTreeMap<String, Subjects>,
}

/// Pods of one node that a policy selects.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subjects {
    pub(crate) pods: usize,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Wanted {
    /// Puts together what was read; the pods can be of any namespace. `None` if it is no policy.
    pub(crate) fn of<'a>(
        policy: &Object,
        of_namespace: Option<Mode>,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Option<Wanted> {
        let Known::Policy(policy_of) = &policy.body else { return None };
        let Policy { namespace, name, subject, mode, .. } = policy_of;
        let mut nodes: BTreeMap<String, Subjects> = BTreeMap::new();
        for pod in pods.filter(|pod| pod.namespace == *namespace) {
            let counts = !pod.host_network && !pod.finished && subject.matches(&pod.labels);
            let Some(node) = pod.node.as_ref().filter(|_| counts) else { continue };
            let subjects = nodes.entry(node.clone()).or_default();
            subjects.pods += 1;
            subjects.addresses.extend(&pod.addresses);
        }
        Some(Wanted {
            namespace: namespace.clone(),
            name: name.clone(),
            version: Version::clone(&policy.version),
            mode: mode.or(of_namespace).unwrap_or_default(),
            nodes,
        })
    }

    /// Why a node does not enforce it, if so, by what its kernel holds.
    pub(crate) fn lag(&self, node: &str, held: Option<&Held>) -> Option<String> {
        let subjects = self.nodes.get(node)?;
        let Some(held) = held else { return Some("is not there yet".to_owned()) };
        let Version { uid, generation, resource_version } = &self.version;
        if held.uid != *uid {
            return Some("an earlier policy of that name is still there".to_owned());
        }
        let same = match generation {
            // Without a number, only what is the same to the letter is known to be it.
            0 => held.resource_version == *resource_version,
            generation => held.generation >= *generation,
        };
        if !same {
            return Some(format!("generation {} instead of {generation}", held.generation));
        }
        if held.mode != self.mode.as_str() {
            return Some(match (self.mode, Mode::of_name(&held.mode)) {
                (Mode::Enforce, Some(Mode::Audit)) => {
                    "is only audited there: the agent runs with --mode=audit, or has not heard yet \
                     that an annotation is gone"
                        .to_owned()
                }
                _ => format!("in the mode {} instead of {}", held.mode, self.mode),
            });
        }
        if held.pods < subjects.pods {
            let known = held.pods;
            return Some(format!("knows {known} of {}", plural(subjects.pods, "pod")));
        }
        None
    }
}

/// Asks an agent what its kernel holds, of all policies or of one.
pub(crate) fn holding(line: &mut Line, only: Option<(&str, &str)>) -> Result<Holding, String> {
    let owned = |text: &str| Some(text.to_owned());
    let (namespace, name) = match only {
        Some((namespace, name)) => (owned(namespace), owned(name)),
        None => (None, None),
    };
    let mut all = Holding { settled: true, ..Holding::default() };
    line.ask(&Request::Policies { namespace, name }, |answer| match answer {
        Answer::Policies(Holding { node, settled, policies }) => {
            all.node = node;
            all.settled &= settled;
            all.policies.extend(policies);
            Ok(())
        }
        other => Err(format!("it answers something else: {other:?}")),
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use portcullis_core::labels::{Labels, Selector};

    use super::*;

    fn wanted(generation: i64) -> Wanted {
        let version = Version { uid: "a".to_owned(), generation, resource_version: "7".to_owned() };
        let labels = |app: &str| Labels::from([("app".to_owned(), app.to_owned())]);
        let subject = Selector { match_labels: labels("db"), ..Selector::default() };
        let policy = Policy {
            namespace: "shop".to_owned(),
            name: "db".to_owned(),
            subject,
            ..Policy::default()
        };
        let pod = |name: &str, node: Option<&str>, app: &str| Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            node: node.map(str::to_owned),
            labels: labels(app),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ..Pod::default()
        };
        let pods = [
            pod("db-0", Some("node-1"), "db"),
            pod("db-1", Some("node-1"), "db"),
            pod("web", Some("node-2"), "web"),
            pod("db-2", None, "db"),
            Pod { finished: true, ..pod("db-3", Some("node-3"), "db") },
        ];
        let object = Object { version: version.into(), ..Object::from(Known::Policy(policy)) };
        Wanted::of(&object, None, pods.iter()).unwrap()
    }

    fn held(change: impl FnOnce(&mut Held)) -> Held {
        let mut held = Held {
            namespace: "shop".to_owned(),
            name: "db".to_owned(),
            uid: "a".to_owned(),
            generation: 3,
            resource_version: "6".to_owned(),
            mode: "enforce".to_owned(),
            pods: 2,
            addresses: Vec::new(),
        };
        change(&mut held);
        held
    }

    #[test]
    fn only_the_nodes_of_pods_that_it_selects_can_lag() {
        let wanted = wanted(3);
        assert_eq!(wanted.nodes.keys().collect::<Vec<_>>(), ["node-1"]);
        assert_eq!(wanted.nodes["node-1"].pods, 2);
        assert_eq!(wanted.lag("node-2", None), None);
        assert_eq!(wanted.lag("node-1", None).as_deref(), Some("is not there yet"));
    }

    #[test]
    fn whatever_is_older_or_less_lags() {
        let lag = |generation, change: &dyn Fn(&mut Held)| {
            wanted(generation).lag("node-1", Some(&held(|held| change(held))))
        };
        assert_eq!(lag(3, &|_| {}), None);
        assert_eq!(lag(2, &|_| {}), None, "a newer one has come meanwhile");
        assert_eq!(lag(4, &|_| {}).as_deref(), Some("generation 3 instead of 4"));
        assert!(lag(0, &|_| {}).is_some(), "no number, and another version");
        assert_eq!(lag(0, &|held| held.resource_version = "7".to_owned()), None);
        assert!(lag(3, &|held| held.uid = "b".to_owned()).is_some());
        assert!(lag(3, &|held| held.mode = "audit".to_owned()).is_some());
        assert_eq!(lag(3, &|held| held.pods = 1).as_deref(), Some("knows 1 of 2 pods"));
    }
}
