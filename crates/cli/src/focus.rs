//! `-n`, `-A` and `-l` where an answer is about all pods: which of them are asked about.

use std::collections::BTreeSet;

use portcullis_core::labels::Selector;
use portcullis_core::model::{Cluster, Pod};
use portcullis_kube::closest;

use crate::ends::NotAnEnd;

/// What is said of `-n` where it also narrows the answer.
pub(crate) const NAMESPACE: &str = "Only connections from or to pods of this namespace, which is \
                                    also that of objects and of names that give none";

/// What stands beside `-n`, which is also about what is read.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FocusArgs {
    /// All namespaces; -n is then only that of objects and of names that give none
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only connections from or to pods with these labels, such as app=web,tier!=db
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
}

/// The pods that are asked about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Focus {
    namespace: Option<String>,
    selector: Option<Selector>,
}

impl FocusArgs {
    /// The focus for the namespace of `-n`, if that is given. That there is no such pod in any of
    /// the clusters is an error: "nothing is allowed" would be taken for an answer.
    pub(crate) fn focus(
        &self,
        namespace: Option<&String>,
        clusters: &[&Cluster],
    ) -> Result<Focus, NotAnEnd> {
        let namespace = namespace.filter(|_| !self.all_namespaces).cloned();
        if let Some(name) = &namespace {
            known(name, clusters)?;
        }
        let focus = Focus { namespace, selector: self.selector.clone() };
        if let Some(selector) = &focus.selector
            && !clusters.iter().any(|cluster| cluster.pods.iter().any(|p| focus.includes(p)))
        {
            let of = focus.namespace.as_ref().map_or(String::new(), |n| format!(" in {n}"));
            return Err(NotAnEnd::new(format!("no pod of the input{of} has {selector} (-l)")));
        }
        Ok(focus)
    }
}

/// Checks that some object of some cluster is in a namespace.
pub(crate) fn known(namespace: &str, clusters: &[&Cluster]) -> Result<(), NotAnEnd> {
    let names = |cluster: &&'_ Cluster| -> BTreeSet<String> {
        let Cluster { namespaces, pods, services, policies, .. } = cluster;
        let pods = pods.iter().map(|pod| &pod.namespace);
        let services = services.iter().map(|service| &service.namespace);
        let policies = policies.iter().map(|policy| &policy.namespace);
        namespaces.keys().chain(pods).chain(services).chain(policies).cloned().collect()
    };
    let names: BTreeSet<String> = clusters.iter().flat_map(names).collect();
    if names.contains(namespace) {
        return Ok(());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hint = match (closest(namespace, &names), names.as_slice()) {
        (Some(meant), _) => format!(", did you mean {meant:?}?"),
        (None, []) => ": it names none".to_owned(),
        (None, [a, b, c, _, _, ..]) => {
            format!(": there are {a}, {b}, {c}, … ({} in all)", names.len())
        }
        (None, [only]) => format!(": there is {only}"),
        (None, few) => format!(": there are {}", few.join(", ")),
    };
    Err(NotAnEnd::new(format!("no namespace {namespace:?} in the input{hint}")))
}

impl Focus {
    /// Whether every pod is asked about.
    pub(crate) fn is_all(&self) -> bool {
        self.namespace.is_none() && self.selector.is_none()
    }

    /// Whether this pod is asked about.
    pub(crate) fn includes(&self, pod: &Pod) -> bool {
        self.namespace.as_ref().is_none_or(|name| pod.namespace == *name)
            && self.selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
    }
}
