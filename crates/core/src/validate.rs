//! From what a person wrote ([`crate::api`]) to what can be compiled ([`crate::model`]).
//!
//! The rules, field paths and reasons are those of the API server
//! (`ValidateNetworkPolicy` of `networking.k8s.io/v1`); the wording is ours (SEMANTICS 21).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::api;
use crate::labels::{Labels, Operator, Requirement, Selector};
use crate::model::{Direction, IpBlock, Mode, Peer, Policy, PortMatch, PortRule, Rule};
use crate::net::{IpNet, Protocol};

/// What was found in one NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The policy. Where there are errors it is the closed reading: it isolates at least what its
    /// author can have meant, and what cannot be read allows nothing (SEMANTICS 22).
    pub policy: Policy,
    /// Why the API server would reject the object; all reasons at once.
    pub errors: Vec<FieldError>,
    /// What the API server accepts with a warning.
    pub warnings: Vec<FieldError>,
}

/// One thing that is wrong in one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as the API server writes paths: `spec.ingress[0].ports[1].endPort`.
    pub path: String,
    /// The kind of mistake.
    pub reason: Reason,
    /// The value as written, where the kind of mistake is about a value.
    pub value: Option<String>,
    /// What was expected.
    pub detail: String,
}

/// The API server's kinds of field errors (`field.ErrorType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Something that must be given is not.
    Required,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is none of the few that are allowed.
    NotSupported,
    /// The field must not be given here.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
}

impl Reason {
    /// The name that `status.details.causes[].reason` carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Required => "Required value",
            Reason::Invalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
        })
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl FieldError {
    /// The message without the path: `Invalid value: 0: must be between 1 and 65535`.
    pub fn body(&self) -> String {
        match &self.value {
            Some(value) => format!("{}: {value}: {}", self.reason, self.detail),
            None => format!("{}: {}", self.reason, self.detail),
        }
    }
}

/// Reads a NetworkPolicy: the closed reading of it, with everything that is wrong.
pub fn read(raw: &api::NetworkPolicy) -> Reading {
    read_decoded(raw, &[])
}

/// The same where some fields could not even be decoded, and so are absent from `raw`: an absent
/// field often means more than any that is there. `undecoded` has their paths, and those of fields
/// that the API does not have; the closed reading is closed for them too. They are not repeated
/// among the errors.
pub fn read_decoded(raw: &api::NetworkPolicy, undecoded: &[String]) -> Reading {
    let mut v = Validator::default();
    v.metadata(raw);
    let spec = &raw.spec;
    let subject = v.selector(&spec.pod_selector, "spec.podSelector");
    let mut rules = |direction: Direction, section: &Option<Vec<api::Rule>>| -> Vec<Rule> {
        let rules = section.iter().flatten().enumerate();
        rules.map(|(i, rule)| v.rule(rule, direction, i)).collect()
    };
    let ingress = rules(Direction::Ingress, &spec.ingress);
    let egress = rules(Direction::Egress, &spec.egress);
    v.policy_types(spec);

    let broken = Broken(v.errors.iter().map(|e| &e.path).chain(undecoded).collect());
    let closed = |direction: Direction, rules: Vec<Rule>| {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let name = match direction {
            Direction::Ingress => "Ingress",
            Direction::Egress => "Egress",
        };
        let listed = types.iter().any(|t| t == name);
        let types_are_known = !broken.within("spec.policyTypes") && !broken.as_a_whole();
        let section = format!("spec.{}", direction.section());
        let isolates = match (types_are_known, types.is_empty(), direction) {
            (false, _, _) | (true, true, Direction::Ingress) => true,
            (true, true, Direction::Egress) => !rules.is_empty() || broken.within(&section),
            (true, false, _) => listed,
        };
        // A subject that cannot be read may select pods that the author did not mean: those are
        // isolated, but not opened. The same goes for a direction that may not have been meant.
        let opens = !broken.within("spec.podSelector")
            && !broken.as_a_whole()
            && (types_are_known || listed);
        let rule = |(i, rule)| {
            let readable = opens && !broken.within(&format!("{section}[{i}]"));
            if readable { rule } else { Rule::nothing() }
        };
        isolates.then(|| rules.into_iter().enumerate().map(rule).collect())
    };
    let policy = Policy {
        ingress: closed(Direction::Ingress, ingress),
        egress: closed(Direction::Egress, egress),
        namespace: raw.namespace.clone(),
        name: raw.name.clone(),
        subject,
        mode: raw.mode.as_deref().and_then(Mode::of_name),
    };
    Reading { policy, errors: v.errors, warnings: v.warnings }
}

/// The fields with something wrong in them.
struct Broken<'a>(Vec<&'a String>);

impl Broken<'_> {
    /// Whether something is wrong with a field, or with one inside it.
    fn within(&self, field: &str) -> bool {
        self.0.iter().any(|path| {
            let rest = path.strip_prefix(field);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Whether it is nowhere inside the sections of a spec, so that nobody knows what it means for
    /// them: a spec that is none, a section that the API does not have.
    fn as_a_whole(&self) -> bool {
        const SECTIONS: [&str; 4] =
            ["spec.podSelector", "spec.ingress", "spec.egress", "spec.policyTypes"];
        let inside = |path: &str, field: &str| Broken(vec![&path.to_owned()]).within(field);
        self.0.iter().any(|path| {
            !inside(path, "metadata") && !SECTIONS.iter().any(|section| inside(path, section))
        })
    }
}

/// Reads a CIDR as the API server does, which takes more than the standard forms: leading zeros
/// in IPv4, host bits, IPv4 mapped into IPv6. The network, and what to write instead if it was
/// not in standard form.
pub fn cidr(text: &str) -> Option<(IpNet, Option<String>)> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut length: u8 = length.parse().ok()?;
    let mut address = ip(address)?;
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
        && (96..=128).contains(&length)
    {
        address = v4.into();
        length -= 96;
    }
    let net = IpNet::new(address, length).ok()?.trunc();
    let standard = net.to_string();
    Some((net, (standard != text).then_some(standard)))
}

/// An address, IPv4 also with leading zeros, which are decimal and not octal.
fn ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return if text.contains('%') { None } else { text.parse().ok() };
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets).into())
}

#[derive(Default)]
struct Validator {
    errors: Vec<FieldError>,
    warnings: Vec<FieldError>,
}

impl Validator {
    fn error(
        &mut self,
        path: impl Into<String>,
        reason: Reason,
        value: Option<String>,
        detail: impl Into<String>,
    ) {
        self.errors.push(FieldError { path: path.into(), reason, value, detail: detail.into() });
    }

    fn invalid(&mut self, path: impl Into<String>, value: &str, detail: impl Into<String>) {
        self.error(path, Reason::Invalid, Some(format!("{value:?}")), detail);
    }

    fn metadata(&mut self, raw: &api::NetworkPolicy) {
        if raw.name.is_empty() {
            self.error("metadata.name", Reason::Required, None, "a name is required");
        } else if let Some(wrong) = not_a_subdomain(&raw.name) {
            self.invalid("metadata.name", &raw.name, wrong);
        }
        if raw.namespace.is_empty() {
            self.error("metadata.namespace", Reason::Required, None, "a namespace is required");
        } else if let Some(wrong) = not_a_dns_label(&raw.namespace) {
            self.invalid("metadata.namespace", &raw.namespace, wrong);
        }
        self.labels(&raw.labels, "metadata.labels");
    }

    fn policy_types(&mut self, spec: &api::NetworkPolicySpec) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let path = "spec.policyTypes";
        if types.len() > 2 {
            let list = format!("{types:?}");
            let detail = "no more than two policyTypes, \"Ingress\" and \"Egress\"";
            self.error(path, Reason::Invalid, Some(list), detail);
            return;
        }
        for (i, name) in types.iter().enumerate() {
            if name != "Ingress" && name != "Egress" {
                let detail = "supported values: \"Ingress\", \"Egress\"";
                let value = Some(format!("{name:?}"));
                self.error(format!("{path}[{i}]"), Reason::NotSupported, value, detail);
            }
        }
    }

    fn rule(&mut self, raw: &api::Rule, direction: Direction, index: usize) -> Rule {
        let path = format!("spec.{}[{index}]", direction.section());
        let ports = raw.ports.iter().flatten().enumerate();
        let ports: Vec<_> =
            ports.filter_map(|(i, p)| self.port(p, &format!("{path}.ports[{i}]"))).collect();
        let peers = raw.peers.iter().flatten().enumerate();
        let peers: Vec<_> = peers
            .filter_map(|(i, p)| self.peer(p, &format!("{path}.{}[{i}]", direction.peers())))
            .collect();
        Rule { peers, ports }
    }

    fn port(&mut self, raw: &api::Port, path: &str) -> Option<PortRule> {
        let name = raw.protocol.as_deref().unwrap_or("TCP");
        let protocol = Protocol::from_api(name);
        if protocol.is_none() {
            let value = Some(format!("{name:?}"));
            let detail = "supported values: \"SCTP\", \"TCP\", \"UDP\"";
            self.error(format!("{path}.protocol"), Reason::NotSupported, value, detail);
        }
        let port = self.port_match(raw, path)?;
        Some(PortRule { protocol: protocol?, port })
    }

    fn port_match(&mut self, raw: &api::Port, path: &str) -> Option<PortMatch> {
        let end_path = format!("{path}.endPort");
        let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
        let range = "must be between 1 and 65535";
        match (&raw.port, raw.end_port) {
            (None, None) => Some(PortMatch::All),
            (None, Some(end)) => {
                let detail = "needs `port`: a range is from `port` to `endPort`";
                self.error(end_path, Reason::Invalid, Some(end.to_string()), detail);
                None
            }
            (Some(api::IntOrString::Int(port)), end) => {
                let first = number(*port);
                if first.is_none() {
                    let path = format!("{path}.port");
                    self.error(path, Reason::Invalid, Some(port.to_string()), range);
                }
                let Some(end) = end else { return first.map(|p| PortMatch::Range(p, p)) };
                if end < *port {
                    let detail = format!("must not be below `port`, which is {port}");
                    self.error(&*end_path, Reason::Invalid, Some(end.to_string()), detail);
                }
                let last = number(end);
                if last.is_none() {
                    self.error(end_path, Reason::Invalid, Some(end.to_string()), range);
                }
                Some(PortMatch::Range(first?, last?))
            }
            (Some(api::IntOrString::String(name)), end) => {
                if let Some(end) = end {
                    let detail = "needs a numeric `port`: names have no range";
                    self.error(end_path, Reason::Invalid, Some(end.to_string()), detail);
                }
                for wrong in not_a_port_name(name) {
                    self.invalid(format!("{path}.port"), name, wrong);
                }
                Some(PortMatch::Named(name.clone()))
            }
        }
    }

    fn peer(&mut self, raw: &api::Peer, path: &str) -> Option<Peer> {
        let mut selector = |raw: &Option<api::LabelSelector>, field: &str| {
            raw.as_ref().map(|s| self.selector(s, &format!("{path}.{field}")))
        };
        let pods = selector(&raw.pod_selector, "podSelector");
        let namespaces = selector(&raw.namespace_selector, "namespaceSelector");
        let selects = pods.is_some() || namespaces.is_some();
        let block = raw.ip_block.as_ref().map(|b| self.ip_block(b, &format!("{path}.ipBlock")));
        match (selects, block) {
            (false, None) => {
                let detail = "a peer needs podSelector, namespaceSelector or ipBlock";
                self.error(path, Reason::Required, None, detail);
                None
            }
            (true, Some(_)) => {
                let detail =
                    "ipBlock cannot stand beside a selector: make it a list item of its own";
                self.error(path, Reason::Forbidden, None, detail);
                None
            }
            (true, None) => Some(Peer::Pods { pods, namespaces }),
            (false, Some(block)) => block.map(Peer::Block),
        }
    }

    fn ip_block(&mut self, raw: &api::IpBlock, path: &str) -> Option<IpBlock> {
        let cidr_path = format!("{path}.cidr");
        if raw.cidr.is_empty() {
            self.error(cidr_path, Reason::Required, None, "a block needs a CIDR");
            return None;
        }
        let network = self.cidr(&raw.cidr, cidr_path)?;
        let mut except = Vec::new();
        for (i, text) in raw.except.iter().enumerate() {
            let path = format!("{path}.except[{i}]");
            let Some(hole) = self.cidr(text, path.clone()) else { continue };
            if network.contains(&hole) && network.prefix_len() < hole.prefix_len() {
                except.push(hole);
            } else {
                self.invalid(path, text, format!("must lie strictly inside `cidr` {}", raw.cidr));
            }
        }
        Some(IpBlock { cidr: network, except })
    }

    fn cidr(&mut self, text: &str, path: String) -> Option<IpNet> {
        let Some((network, standard)) = cidr(text) else {
            self.invalid(path, text, "must be a CIDR such as 10.9.8.0/24 or 2001:db8::/64");
            return None;
        };
        if let Some(standard) = standard {
            let detail = format!("is taken as {standard}: write that");
            let value = Some(format!("{text:?}"));
            self.warnings.push(FieldError { path, reason: Reason::Invalid, value, detail });
        }
        Some(network)
    }

    /// Requirements that cannot be read are left out, so that a subject selector with a mistake
    /// selects more and not less. A peer with one is never used: its rule allows nothing.
    fn selector(&mut self, raw: &api::LabelSelector, path: &str) -> Selector {
        let errors_before = self.errors.len();
        self.labels(&raw.match_labels, &format!("{path}.matchLabels"));
        let labels_are_good = self.errors.len() == errors_before;
        let expressions = raw.match_expressions.iter().enumerate();
        let match_expressions = expressions
            .filter_map(|(i, e)| self.requirement(e, &format!("{path}.matchExpressions[{i}]")))
            .collect();
        let match_labels =
            if labels_are_good { raw.match_labels.clone() } else { Labels::default() };
        Selector { match_labels, match_expressions }
    }

    fn requirement(
        &mut self,
        raw: &api::LabelSelectorRequirement,
        path: &str,
    ) -> Option<Requirement> {
        let errors_before = self.errors.len();
        let values = || raw.values.clone();
        let operator = match raw.operator.as_str() {
            "In" => Some(Operator::In(values())),
            "NotIn" => Some(Operator::NotIn(values())),
            "Exists" => Some(Operator::Exists),
            "DoesNotExist" => Some(Operator::DoesNotExist),
            other => {
                let detail = "is not an operator: write In, NotIn, Exists or DoesNotExist";
                self.invalid(format!("{path}.operator"), other, detail);
                None
            }
        };
        let values_path = format!("{path}.values");
        match operator {
            Some(Operator::In(_) | Operator::NotIn(_)) if raw.values.is_empty() => {
                let detail = "In and NotIn need values";
                self.error(values_path.clone(), Reason::Required, None, detail);
            }
            Some(Operator::Exists | Operator::DoesNotExist) if !raw.values.is_empty() => {
                let detail = "Exists and DoesNotExist take no values";
                self.error(values_path.clone(), Reason::Forbidden, None, detail);
            }
            _ => {}
        }
        for wrong in not_a_label_key(&raw.key) {
            self.invalid(format!("{path}.key"), &raw.key, wrong);
        }
        for (i, value) in raw.values.iter().enumerate() {
            for wrong in not_a_label_value(value) {
                self.invalid(format!("{values_path}[{i}]"), value, wrong);
            }
        }
        let good = self.errors.len() == errors_before;
        operator.filter(|_| good).map(|operator| Requirement { key: raw.key.clone(), operator })
    }

    fn labels(&mut self, labels: &Labels, path: &str) {
        for (key, value) in labels.iter() {
            for wrong in not_a_label_key(key) {
                self.invalid(path, key, wrong);
            }
            for wrong in not_a_label_value(value) {
                self.invalid(path, value, wrong);
            }
        }
    }
}

const NAME_FORM: &str =
    "letters, digits, '-', '_' and '.', with a letter or digit at both ends, such as 'my.name'";

/// What keeps a text from being a label key: `prefix/name`, the prefix optional.
fn not_a_label_key(key: &str) -> Vec<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.contains('/') {
        return vec!["a label key has one '/' at most, between a DNS name and a name".to_owned()];
    }
    let mut wrong = Vec::new();
    match prefix {
        Some("") => wrong.push("the part before '/' must not be empty".to_owned()),
        Some(prefix) => {
            wrong.extend(not_a_subdomain(prefix).map(|w| format!("the part before '/' {w}")));
        }
        None => {}
    }
    if name.is_empty() {
        wrong.push("the name must not be empty".to_owned());
    } else {
        if name.len() > 63 {
            wrong.push("the name must have no more than 63 characters".to_owned());
        }
        if !is_name(name) {
            wrong.push(format!("the name must be of {NAME_FORM}"));
        }
    }
    wrong
}

/// What keeps a text from being a label value. An empty one is valid.
fn not_a_label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push("must have no more than 63 characters".to_owned());
    }
    if !value.is_empty() && !is_name(value) {
        wrong.push(format!("must be empty or of {NAME_FORM}"));
    }
    wrong
}

fn is_name(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    bytes.iter().all(|b| inside(*b))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// What keeps a text from being a container port name (an IANA_SVC_NAME of RFC 6335, lower case).
fn not_a_port_name(name: &str) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    if name.len() > 15 {
        wrong.push("a port name has no more than 15 characters");
    }
    if name.is_empty()
        || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        wrong.push("a port name is of lower case letters, digits and '-'");
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("a port name has at least one letter; write a number without quotes");
    }
    if name.contains("--") {
        wrong.push("a port name has no two '-' in a row");
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("a port name has a letter or digit at both ends");
    }
    wrong
}

fn not_a_subdomain(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some("must have no more than 253 characters".to_owned());
    }
    let good = text.split('.').all(is_dns_label);
    let form = "must be a DNS name: lower case letters, digits, '-' and '.', \
                with a letter or digit at both ends of each part, such as 'example.com'";
    (!good).then(|| form.to_owned())
}

fn not_a_dns_label(text: &str) -> Option<String> {
    let form = "must be of lower case letters, digits and '-', \
                with a letter or digit at both ends, and no more than 63 characters";
    (text.len() > 63 || !is_dns_label(text)).then(|| form.to_owned())
}

fn is_dns_label(text: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{IntOrString, LabelSelector, LabelSelectorRequirement, NetworkPolicy, Port};

    /// A policy with one ingress rule of one peer and one port, to be spoilt.
    fn sound() -> NetworkPolicy {
        let peer = api::Peer { pod_selector: Some(LabelSelector::default()), ..Default::default() };
        let port = Port { port: Some(IntOrString::Int(80)), ..Default::default() };
        let rule = api::Rule { peers: Some(vec![peer]), ports: Some(vec![port]) };
        NetworkPolicy {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            spec: api::NetworkPolicySpec { ingress: Some(vec![rule]), ..Default::default() },
            ..Default::default()
        }
    }

    /// The errors of a policy as lines of `path: reason`.
    fn errors(spoil: impl FnOnce(&mut NetworkPolicy)) -> Vec<String> {
        let mut policy = sound();
        spoil(&mut policy);
        read(&policy).errors.iter().map(|e| format!("{}: {}", e.path, e.reason)).collect()
    }

    fn first_rule(policy: &mut NetworkPolicy) -> &mut api::Rule {
        &mut policy.spec.ingress.as_mut().unwrap()[0]
    }

    fn port_errors(port: Port) -> Vec<String> {
        errors(|p| first_rule(p).ports = Some(vec![port]))
    }

    fn peer_errors(peer: api::Peer) -> Vec<String> {
        errors(|p| first_rule(p).peers = Some(vec![peer]))
    }

    fn block_errors(cidr: &str, except: &[&str]) -> Vec<String> {
        let except = except.iter().map(|e| (*e).to_owned()).collect();
        let ip_block = Some(api::IpBlock { cidr: cidr.to_owned(), except });
        peer_errors(api::Peer { ip_block, ..Default::default() })
    }

    fn requirement_errors(key: &str, operator: &str, values: &[&str]) -> Vec<String> {
        let requirement = LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        errors(|p| p.spec.pod_selector.match_expressions = vec![requirement])
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn semantics_21_a_sound_policy_has_no_errors() {
        assert_eq!(errors(|_| {}), NONE);
    }

    #[test]
    fn semantics_21_ports() {
        let int = |n| Some(IntOrString::Int(n));
        let name = |s: &str| Some(IntOrString::String(s.to_owned()));
        let port = "spec.ingress[0].ports[0].port: Invalid value";
        let end = "spec.ingress[0].ports[0].endPort: Invalid value";
        let with = |port, end_port| Port { port, end_port, ..Default::default() };
        assert_eq!(port_errors(with(int(0), None)), [port]);
        assert_eq!(port_errors(with(int(65536), None)), [port]);
        assert_eq!(port_errors(with(int(-1), None)), [port]);
        assert_eq!(port_errors(with(int(65535), None)), NONE);
        assert_eq!(port_errors(with(int(80), Some(80))), NONE);
        assert_eq!(port_errors(with(int(80), Some(79))), [end]);
        assert_eq!(port_errors(with(int(80), Some(65536))), [end]);
        assert_eq!(port_errors(with(int(0), Some(-1))), [port, end, end]);
        assert_eq!(port_errors(with(None, Some(80))), [end]);
        assert_eq!(port_errors(with(name("http"), Some(80))), [end]);
        assert_eq!(port_errors(with(name("http-2"), None)), NONE);
        for bad in ["80", "HTTP", "a--b", "-a", "a-", "sixteen-letters-", "a_b"] {
            assert!(!port_errors(with(name(bad), None)).is_empty(), "{bad}");
        }
        assert_eq!(port_errors(with(name(""), None)).len(), 2);
    }

    #[test]
    fn semantics_21_protocols_in_the_spelling_of_the_api_only() {
        let with = |p: &str| Port { protocol: Some(p.to_owned()), ..Default::default() };
        for good in ["TCP", "UDP", "SCTP"] {
            assert_eq!(port_errors(with(good)), NONE);
        }
        for bad in ["tcp", "ICMP", ""] {
            let expected = ["spec.ingress[0].ports[0].protocol: Unsupported value"];
            assert_eq!(port_errors(with(bad)), expected);
        }
    }

    #[test]
    fn semantics_21_peers() {
        let selector = || Some(LabelSelector::default());
        let block = || Some(api::IpBlock { cidr: "10.0.0.0/8".to_owned(), except: vec![] });
        let peer = "spec.ingress[0].from[0]";
        assert_eq!(peer_errors(api::Peer::default()), [format!("{peer}: Required value")]);
        let both =
            api::Peer { ip_block: block(), namespace_selector: selector(), pod_selector: None };
        assert_eq!(peer_errors(both), [format!("{peer}: Forbidden")]);
    }

    #[test]
    fn semantics_21_blocks() {
        let path = "spec.ingress[0].from[0].ipBlock";
        let cidr = [format!("{path}.cidr: Invalid value")];
        assert_eq!(block_errors("10.0.0.0/8", &["10.1.0.0/16"]), NONE);
        assert_eq!(block_errors("", &[]), [format!("{path}.cidr: Required value")]);
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.256/8",
            "fd00::/129",
            "fe80::1%eth0/64",
            "10.0.0.0/+8",
            "x/8",
            "/8",
            "10.0.0.0/",
        ] {
            assert_eq!(block_errors(bad, &[]), cidr, "{bad}");
        }
        let except = [format!("{path}.except[0]: Invalid value")];
        for bad in ["10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/16", "fd00::/64", "10.0.0.0"] {
            assert_eq!(block_errors("10.0.0.0/8", &[bad]), except, "{bad}");
        }
    }

    #[test]
    fn semantics_18_a_cidr_in_another_form_is_taken_as_its_network_and_reported() {
        let ip_block = |text: &str| {
            let mut policy = sound();
            let block = api::IpBlock { cidr: text.to_owned(), except: vec![] };
            first_rule(&mut policy).peers =
                Some(vec![api::Peer { ip_block: Some(block), ..Default::default() }]);
            let reading = read(&policy);
            assert_eq!(reading.errors, []);
            let rules = reading.policy.ingress.unwrap();
            let Peer::Block(block) = rules[0].peers[0].clone() else { panic!("no block") };
            (block.cidr.to_string(), reading.warnings.len())
        };
        assert_eq!(ip_block("10.1.0.0/16"), ("10.1.0.0/16".to_owned(), 0));
        assert_eq!(ip_block("10.1.2.3/16"), ("10.1.0.0/16".to_owned(), 1));
        assert_eq!(ip_block("010.001.0.0/16"), ("10.1.0.0/16".to_owned(), 1));
        assert_eq!(ip_block("::ffff:10.1.0.0/112"), ("10.1.0.0/16".to_owned(), 1));
        assert_eq!(ip_block("FD00::/8"), ("fd00::/8".to_owned(), 1));
    }

    #[test]
    fn semantics_21_selectors() {
        let path = "spec.podSelector.matchExpressions[0]";
        assert_eq!(requirement_errors("app", "In", &["web", ""]), NONE);
        assert_eq!(requirement_errors("example.com/app", "Exists", &[]), NONE);
        for operator in ["In", "NotIn"] {
            let expected = [format!("{path}.values: Required value")];
            assert_eq!(requirement_errors("app", operator, &[]), expected);
        }
        for operator in ["Exists", "DoesNotExist"] {
            let expected = [format!("{path}.values: Forbidden")];
            assert_eq!(requirement_errors("app", operator, &["web"]), expected);
        }
        for operator in ["in", "", "Equals"] {
            let expected = [format!("{path}.operator: Invalid value")];
            assert_eq!(requirement_errors("app", operator, &["web"]), expected);
        }
        let key = [format!("{path}.key: Invalid value")];
        for bad in
            ["", "-app", "a b", "Example.com/app", "/app", "a.b/c/d", "app/", &"a".repeat(64)]
        {
            assert_eq!(requirement_errors(bad, "Exists", &[]), key, "{bad}");
        }
        let expected = [format!("{path}.values[1]: Invalid value")];
        assert_eq!(requirement_errors("app", "In", &["web", "a b"]), expected);
        let labels = errors(|p| {
            p.spec.pod_selector.match_labels.insert("a b".to_owned(), "web".to_owned());
        });
        assert_eq!(labels, ["spec.podSelector.matchLabels: Invalid value"]);
    }

    #[test]
    fn semantics_21_policy_types() {
        let types = |types: &[&str]| {
            let types = types.iter().map(|t| (*t).to_owned()).collect();
            errors(|p| p.spec.policy_types = Some(types))
        };
        assert_eq!(types(&["Ingress", "Egress"]), NONE);
        assert_eq!(types(&["Ingress", "Ingress"]), NONE);
        assert_eq!(types(&["ingress"]), ["spec.policyTypes[0]: Unsupported value"]);
        let three = types(&["Ingress", "Egress", "Ingress"]);
        assert_eq!(three, ["spec.policyTypes: Invalid value"]);
    }

    #[test]
    fn semantics_21_all_errors_of_an_object_come_at_once() {
        let found = errors(|p| {
            p.name = "Web".to_owned();
            p.spec.policy_types = Some(vec!["Both".to_owned()]);
            let rule = first_rule(p);
            rule.ports.as_mut().unwrap()[0].end_port = Some(1);
            rule.peers.as_mut().unwrap().push(api::Peer::default());
        });
        let expected = [
            "metadata.name: Invalid value",
            "spec.ingress[0].ports[0].endPort: Invalid value",
            "spec.ingress[0].from[1]: Required value",
            "spec.policyTypes[0]: Unsupported value",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn semantics_22_a_rule_that_cannot_be_read_allows_nothing() {
        let mut policy = sound();
        first_rule(&mut policy).peers.as_mut().unwrap()[0].ip_block =
            Some(api::IpBlock { cidr: "10.0.0.0/8".to_owned(), except: vec![] });
        let rules = read(&policy).policy.ingress.unwrap();
        assert_eq!(rules, [Rule::nothing()]);
    }

    #[test]
    fn semantics_22_a_policy_that_cannot_be_read_isolates_all_it_can_mean() {
        let mut policy = sound();
        policy.spec.policy_types = Some(vec!["Inbound".to_owned()]);
        let bad = LabelSelectorRequirement { key: "app".to_owned(), ..Default::default() };
        policy.spec.pod_selector.match_expressions = vec![bad];
        let reading = read(&policy);
        assert!(reading.policy.subject.is_empty());
        assert_eq!(reading.policy.ingress, Some(vec![Rule::nothing()]));
        assert_eq!(reading.policy.egress, Some(vec![]));
    }

    #[test]
    fn semantics_22_a_type_that_cannot_be_read_opens_no_direction() {
        let reading = |types: &[&str]| {
            let mut policy = sound();
            policy.spec.policy_types = Some(types.iter().map(|t| (*t).to_owned()).collect());
            read(&policy).policy
        };
        let closed = reading(&["Egres"]);
        assert_eq!(closed.ingress, Some(vec![Rule::nothing()]));
        assert_eq!(closed.egress, Some(vec![]));
        let listed = reading(&["Ingress", "Egres"]);
        assert_ne!(listed.ingress, Some(vec![Rule::nothing()]));
        assert_eq!(listed.egress, Some(vec![]));
    }

    #[test]
    fn semantics_22_what_could_not_be_decoded_is_closed_too() {
        let closed = |path: &str| {
            let mut policy = sound();
            policy.spec.policy_types = Some(vec!["Ingress".to_owned()]);
            read_decoded(&policy, &[path.to_owned()]).policy
        };
        let nothing = Some(vec![Rule::nothing()]);
        for path in [
            "spec.podSelector.matchLabel",
            "spec.ingress[0].form",
            "spec.ingress[0].ports",
            "spec.ingress[0].from[0].ipBlock.except",
            "spec.ingres",
            "spec",
            "",
        ] {
            assert_eq!(closed(path).ingress, nothing, "{path}");
        }
        for path in ["spec.ingres", "spec.policyTypes", "spec"] {
            assert!(closed(path).egress.is_some(), "{path}");
        }
        for path in ["metadata.labels", "spec.ingress[1].from", "spec.egress[0]"] {
            assert_ne!(closed(path).ingress, nothing, "{path}");
            assert_eq!(closed(path).egress, None, "{path}");
        }
        let mut policy = sound();
        policy.spec.policy_types = None;
        let undecoded = ["spec.egress".to_owned()];
        assert_eq!(read_decoded(&policy, &undecoded).policy.egress, Some(vec![]));
    }

    #[test]
    fn semantics_02_policy_types_default_to_ingress_and_to_egress_where_it_has_rules() {
        let isolates = |egress: Option<Vec<api::Rule>>, types: Option<Vec<String>>| {
            let mut policy = sound();
            policy.spec.egress = egress;
            policy.spec.policy_types = types;
            let policy = read(&policy).policy;
            (policy.ingress.is_some(), policy.egress.is_some())
        };
        let one_rule = || Some(vec![api::Rule::default()]);
        assert_eq!(isolates(None, None), (true, false));
        assert_eq!(isolates(Some(vec![]), None), (true, false));
        assert_eq!(isolates(one_rule(), None), (true, true));
        assert_eq!(isolates(one_rule(), Some(vec![])), (true, true));
        assert_eq!(isolates(None, Some(vec!["Egress".to_owned()])), (false, true));
    }
}
