//! The `networking.k8s.io/v1` NetworkPolicy as a person wrote it: nothing checked yet.
//!
//! Readers fill these types; [`crate::validate`] turns them into [`crate::model::Policy`]. Field
//! names follow the API reference. Types the API gives as enumerations are strings here, because
//! what is wrong in them has to be reported, not lost.

/// A NetworkPolicy object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `metadata.name`; empty where it is absent.
    pub name: String,
    /// `metadata.namespace`, or the namespace the reader was told to assume.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: crate::labels::Labels,
    /// `metadata.annotations` of the name [`MODE_ANNOTATION`](crate::model::MODE_ANNOTATION).
    pub mode: Option<String>,
    /// `spec`.
    pub spec: NetworkPolicySpec,
}

/// `NetworkPolicySpec`. A list that is absent and one that is empty are kept apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPolicySpec {
    /// `podSelector`. The API defaults an absent one to the empty selector.
    pub pod_selector: LabelSelector,
    /// `ingress`.
    pub ingress: Option<Vec<Rule>>,
    /// `egress`.
    pub egress: Option<Vec<Rule>>,
    /// `policyTypes`.
    pub policy_types: Option<Vec<String>>,
}

/// `NetworkPolicyIngressRule` or `NetworkPolicyEgressRule`: they differ only in what they call
/// their peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `from` of an ingress rule, `to` of an egress rule.
    pub peers: Option<Vec<Peer>>,
    /// `ports`.
    pub ports: Option<Vec<Port>>,
}

/// `NetworkPolicyPeer`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// `podSelector`.
    pub pod_selector: Option<LabelSelector>,
    /// `namespaceSelector`.
    pub namespace_selector: Option<LabelSelector>,
    /// `ipBlock`.
    pub ip_block: Option<IpBlock>,
}

/// `IPBlock`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpBlock {
    /// `cidr`; empty where it is absent.
    pub cidr: String,
    /// `except`.
    pub except: Vec<String>,
}

/// `NetworkPolicyPort`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// `protocol`.
    pub protocol: Option<String>,
    /// `port`.
    pub port: Option<IntOrString>,
    /// `endPort`.
    pub end_port: Option<i32>,
}

/// `util.intstr.IntOrString`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntOrString {
    /// Written as a number.
    Int(i32),
    /// Written as a string.
    String(String),
}

/// `metav1.LabelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub match_labels: crate::labels::Labels,
    /// `matchExpressions`.
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// `metav1.LabelSelectorRequirement`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelectorRequirement {
    /// `key`.
    pub key: String,
    /// `operator`.
    pub operator: String,
    /// `values`.
    pub values: Vec<String>,
}
