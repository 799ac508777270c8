//! The resources that are served.

use std::fmt;

/// A kind of object and what it is called where.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// `apps`; empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `deployments`, as in paths.
    pub plural: &'static str,
    /// `deployment`.
    pub singular: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// Whether objects of it live in namespaces.
    pub namespaced: bool,
    /// `deploy`: what people write for it.
    pub short: &'static [&'static str],
    /// Whether `kubectl get all` shows it.
    pub in_all: bool,
    /// Whether it has a `status` of its own address.
    pub status: bool,
    /// Whether it has a `scale`.
    pub scale: bool,
    /// Whether `metadata.generation` counts its specs.
    pub generation: bool,
    /// Whether objects of it are kept; those of the others are questions, answered at once.
    pub stored: bool,
}

const PLAIN: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    namespaced: true,
    short: &[],
    in_all: false,
    status: false,
    scale: false,
    generation: false,
    stored: true,
};

const WORKLOAD: Resource =
    Resource { group: "apps", in_all: true, status: true, generation: true, ..PLAIN };

const QUESTION: Resource = Resource { namespaced: false, stored: false, ..PLAIN };

/// Every resource, in the order of discovery.
pub static RESOURCES: &[Resource] = &[
    Resource {
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short: &["cm"],
        ..PLAIN
    },
    Resource {
        plural: "endpoints",
        singular: "endpoints",
        kind: "Endpoints",
        short: &["ep"],
        ..PLAIN
    },
    Resource { plural: "events", singular: "event", kind: "Event", short: &["ev"], ..PLAIN },
    Resource {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short: &["ns"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Resource {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short: &["no"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Resource {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short: &["po"],
        in_all: true,
        status: true,
        ..PLAIN
    },
    Resource { plural: "secrets", singular: "secret", kind: "Secret", ..PLAIN },
    Resource {
        plural: "serviceaccounts",
        singular: "serviceaccount",
        kind: "ServiceAccount",
        short: &["sa"],
        ..PLAIN
    },
    Resource {
        plural: "services",
        singular: "service",
        kind: "Service",
        short: &["svc"],
        in_all: true,
        status: true,
        ..PLAIN
    },
    Resource {
        plural: "daemonsets",
        singular: "daemonset",
        kind: "DaemonSet",
        short: &["ds"],
        ..WORKLOAD
    },
    Resource {
        plural: "deployments",
        singular: "deployment",
        kind: "Deployment",
        short: &["deploy"],
        scale: true,
        ..WORKLOAD
    },
    Resource {
        plural: "replicasets",
        singular: "replicaset",
        kind: "ReplicaSet",
        short: &["rs"],
        scale: true,
        ..WORKLOAD
    },
    Resource {
        plural: "statefulsets",
        singular: "statefulset",
        kind: "StatefulSet",
        short: &["sts"],
        scale: true,
        ..WORKLOAD
    },
    Resource {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        ..QUESTION
    },
    Resource {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        ..QUESTION
    },
    Resource {
        group: "authorization.k8s.io",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        ..QUESTION
    },
    Resource {
        group: "coordination.k8s.io",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        ..PLAIN
    },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        singular: "endpointslice",
        kind: "EndpointSlice",
        generation: true,
        ..PLAIN
    },
    Resource {
        group: "networking.k8s.io",
        plural: "ingresses",
        singular: "ingress",
        kind: "Ingress",
        short: &["ing"],
        status: true,
        generation: true,
        ..PLAIN
    },
    Resource {
        group: "networking.k8s.io",
        plural: "networkpolicies",
        singular: "networkpolicy",
        kind: "NetworkPolicy",
        short: &["netpol"],
        generation: true,
        ..PLAIN
    },
];

/// What every resource that is stored can be asked to do.
const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// What can be done with it.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        if self.stored { VERBS } else { &["create"] }
    }

    /// The one of a group and plural.
    pub fn find(group: &str, plural: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|r| r.group == group && r.plural == plural)
    }

    /// The one of a kind; kinds are told apart by name alone here.
    pub fn of_kind(kind: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|r| r.kind == kind)
    }
}

/// `deployments.apps`, as messages of the API server name resources.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            "" => f.write_str(self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}
