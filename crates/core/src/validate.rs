//! From what a person wrote ([`crate::api`]) to what can be compiled ([`crate::model`]).
//!
//! The rules, field paths and reasons are those of the API server
//! (`ValidateNetworkPolicy` of `networking.k8s.io/v1`); the wording is ours (SEMANTICS 21).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::api;
use crate::labels::{Labels, Operator, Requirement, Selector};
use crate::model::{Direction, IpBlock, Peer, Policy, PortMatch, PortRule, Rule};
use crate::net::{IpNet, Protocol};

/// What was found in one NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The policy. Where there are errors it is the closed reading: it isolates at least what the
    /// author can have meant, and a rule with an error in it allows nothing (SEMANTICS 22).
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
    let (isolates_ingress, isolates_egress) = v.policy_types(spec);
    Reading {
        policy: Policy {
            namespace: raw.namespace.clone(),
            name: raw.name.clone(),
            subject,
            ingress: isolates_ingress.then_some(ingress),
            egress: isolates_egress.then_some(egress),
        },
        errors: v.errors,
        warnings: v.warnings,
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

    fn policy_types(&mut self, spec: &api::NetworkPolicySpec) -> (bool, bool) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.is_empty() {
            let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            return (true, egress);
        }
        let path = "spec.policyTypes";
        if types.len() > 2 {
            let list = format!("{types:?}");
            let detail = "no more than two policyTypes, \"Ingress\" and \"Egress\"";
            self.error(path, Reason::Invalid, Some(list), detail);
            return (true, true);
        }
        let mut known = true;
        for (i, name) in types.iter().enumerate() {
            if name != "Ingress" && name != "Egress" {
                known = false;
                let detail = "supported values: \"Ingress\", \"Egress\"";
                let value = Some(format!("{name:?}"));
                self.error(format!("{path}[{i}]"), Reason::NotSupported, value, detail);
            }
        }
        let lists = |name: &str| !known || types.iter().any(|t| t == name);
        (lists("Ingress"), lists("Egress"))
    }

    fn rule(&mut self, raw: &api::Rule, direction: Direction, index: usize) -> Rule {
        let errors_before = self.errors.len();
        let path = format!("spec.{}[{index}]", direction.section());
        let ports = raw.ports.iter().flatten().enumerate();
        let ports: Vec<_> =
            ports.filter_map(|(i, p)| self.port(p, &format!("{path}.ports[{i}]"))).collect();
        let peers = raw.peers.iter().flatten().enumerate();
        let peers: Vec<_> = peers
            .filter_map(|(i, p)| self.peer(p, &format!("{path}.{}[{i}]", direction.peers())))
            .collect();
        if self.errors.len() > errors_before {
            return Rule { peers: vec![Peer::nobody()], ports: Vec::new() };
        }
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
        for (key, value) in labels {
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
