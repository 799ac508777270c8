//! What an agent reports of connections, and of the rules that allow them: the types of `observe`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A connection that was refused or allowed at a node: its first packet, after a Service's address
/// has been translated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// When, in RFC 3339, in UTC.
    pub time: String,
    /// The node that reports it.
    pub node: String,
    /// What became of it.
    pub verdict: Verdict,
    /// The direction in which it was judged; `None` where no policy judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Who opens it.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the number.
    pub protocol: String,
    /// Why it was refused: see [`Reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The policies that isolate the pod, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated_by: Vec<String>,
    /// The rules that allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_by: Vec<RuleName>,
    /// Of the rules of those policies, the one that comes nearest to allowing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed.
    Allowed,
    /// It did not.
    Refused,
    /// It passed, because what refuses it is only audited.
    Audited,
    /// It was open, and does not go on, because it is no longer allowed.
    Cut,
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No rule of the policies that isolate a pod allows it.
    Policy,
    /// An address of the node's pod ranges is of no pod that is known yet.
    UnknownPod,
    /// The source is not an address of the pod that sent it.
    FalseSource,
    /// What is known now does not refuse it: the policies or pods have changed since.
    Changed,
}

/// Which end's policies judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The source's.
    Egress,
    /// The destination's.
    Ingress,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// The port, of a protocol that has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The namespace of the pod that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleName {
    /// The policy, as `namespace/name`.
    pub policy: String,
    /// Its place there: `spec.ingress[0]`.
    pub rule: String,
}

/// A rule that does not allow a connection, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleName,
    /// What does not match.
    pub misses: Vec<Miss>,
}

/// A term of a rule that does not match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// The field in the policy.
    pub path: String,
    /// What the rule asks for.
    pub expected: String,
    /// What there is instead.
    pub found: String,
}

/// Which connections are asked for: those for which all holds that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// What became of it is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
    /// The source is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Who>,
    /// The destination is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Who>,
    /// The destination's port and protocol are one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// A pod of one of these namespaces is at one of the ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
}

/// Who is at an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// A pod. A name that ends with `*` is the beginning of names.
    Pod {
        /// `None` for a pod of any namespace.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// An address of these, whoever has it.
    Net(#[serde(with = "net")] IpNet),
}

/// A port, of a protocol if that is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number.
    pub port: u16,
    /// As in [`Flow::protocol`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// How often a rule let connections pass at a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleHits {
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleName,
    /// New connections. One that several rules allow can count for each of them.
    pub hits: u64,
    /// Since when they are counted, in RFC 3339.
    pub since: String,
}

/// A net as text.
mod net {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(net: &IpNet, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(net)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no CIDR")))
    }
}

impl Filter {
    /// Whether the connection is asked for.
    pub fn wants(&self, flow: &Flow) -> bool {
        fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(is)
        }
        let ends = [&flow.source, &flow.destination];
        let of_namespace =
            |name: &String| ends.iter().any(|end| end.namespace.as_ref() == Some(name));
        any(&self.verdicts, |verdict| *verdict == flow.verdict)
            && any(&self.from, |who| who.is(&flow.source))
            && any(&self.to, |who| who.is(&flow.destination))
            && any(&self.ports, |port| port.is(flow))
            && any(&self.namespaces, of_namespace)
    }
}

impl Verdict {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allowed => "allowed",
            Verdict::Refused => "refused",
            Verdict::Audited => "audited",
            Verdict::Cut => "cut",
        }
    }
}

impl Reason {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Policy => "policy",
            Reason::UnknownPod => "unknown-pod",
            Reason::FalseSource => "false-source",
            Reason::Changed => "changed",
        }
    }
}

impl End {
    /// The pod as `namespace/name`, or else the address.
    pub fn name(&self) -> String {
        match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => self.address.to_string(),
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.short(), self.policy)
    }
}

impl RuleName {
    /// Its place without what is the same of all: `ingress[0]`.
    pub fn short(&self) -> &str {
        self.rule.strip_prefix("spec.").unwrap_or(&self.rule)
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        for (i, Miss { path, expected, found }) in self.misses.iter().enumerate() {
            let field = path.strip_prefix(&self.rule.rule).unwrap_or(path);
            let field = field.strip_prefix('.').unwrap_or(field);
            let before = if i == 0 { ": " } else { "; " };
            write!(f, "{before}{field}: expected {expected}, found {found}")?;
        }
        Ok(())
    }
}

impl Who {
    fn is(&self, end: &End) -> bool {
        match self {
            Who::Net(net) => net.contains(&end.address),
            Who::Pod { namespace, name } => {
                let known = end.pod.as_deref();
                let same_namespace = namespace.is_none() || *namespace == end.namespace;
                same_namespace
                    && known.is_some_and(|known| match name.strip_suffix('*') {
                        Some(beginning) => known.starts_with(beginning),
                        None => known == name,
                    })
            }
        }
    }
}

impl Port {
    fn is(&self, flow: &Flow) -> bool {
        let protocol = self.protocol.as_ref();
        flow.destination.port == Some(self.port)
            && protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case(&flow.protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pod: Option<&str>, address: &str, port: u16) -> End {
        End {
            address: address.parse().unwrap(),
            port: Some(port),
            namespace: pod.map(|_| "shop".to_owned()),
            pod: pod.map(str::to_owned),
        }
    }

    fn flow() -> Flow {
        Flow {
            time: "2026-01-01T00:00:00Z".to_owned(),
            node: "node-1".to_owned(),
            verdict: Verdict::Refused,
            direction: Some(Direction::Ingress),
            source: end(Some("web-7d4f"), "10.0.1.2", 40_000),
            destination: end(None, "10.0.2.2", 80),
            protocol: "TCP".to_owned(),
            reason: Some(Reason::Policy),
            isolated_by: Vec::new(),
            allowed_by: Vec::new(),
            nearest: None,
        }
    }

    fn pod(namespace: Option<&str>, name: &str) -> Who {
        Who::Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    #[test]
    fn all_that_a_filter_says_has_to_hold() {
        let filter = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.wants(&flow())
        };
        assert!(filter(&|_| {}));
        assert!(filter(&|f| f.from = vec![pod(Some("shop"), "web-*")]));
        assert!(!filter(&|f| f.from = vec![pod(Some("shop"), "web-")]));
        assert!(!filter(&|f| f.from = vec![pod(Some("ops"), "web-*")]));
        assert!(filter(&|f| f.from = vec![pod(None, "db"), pod(None, "web-7d4f")]));
        assert!(!filter(&|f| f.to = vec![pod(None, "*")]), "it is no pod");
        assert!(filter(&|f| f.to = vec![Who::Net("10.0.2.0/24".parse().unwrap())]));
        let port =
            |port, protocol: Option<&str>| Port { port, protocol: protocol.map(str::to_owned) };
        assert!(filter(&|f| f.ports = vec![port(80, None)]));
        assert!(filter(&|f| f.ports = vec![port(80, Some("tcp"))]));
        assert!(!filter(&|f| f.ports = vec![port(80, Some("UDP"))]));
        assert!(!filter(&|f| f.ports = vec![port(40_000, None)]), "the source's");
        assert!(filter(&|f| f.namespaces = vec!["shop".to_owned()]));
        assert!(!filter(&|f| f.namespaces = vec!["ops".to_owned()]));
        assert!(!filter(&|f| f.verdicts = vec![Verdict::Allowed]));
        assert!(!filter(&|f| {
            f.from = vec![pod(None, "web-7d4f")];
            f.ports = vec![port(81, None)];
        }));
    }
}
