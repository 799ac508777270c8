//! Policies with mistakes in them, and what the API server says about each.

use std::collections::BTreeSet;

use portcullis_core::api::{
    IntOrString, IpBlock, LabelSelector, LabelSelectorRequirement, NetworkPolicy, Peer, Port, Rule,
};
use portcullis_core::model::Direction;
use portcullis_core::validate::Reason;
use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::sample::select;

use super::{NAMESPACES, policy};

/// A policy that the API server rejects.
#[derive(Debug, Clone)]
pub struct Invalid {
    /// The policy.
    pub policy: NetworkPolicy,
    /// The policy without the mistakes, which all are additions but those in `policyTypes`.
    pub intended: NetworkPolicy,
    /// The path and the reason of each error. Where the API server has several things to say of
    /// one field, it stands here once.
    pub errors: BTreeSet<(String, Reason)>,
}

/// A valid policy, with one to four mistakes added.
pub fn invalid() -> impl Strategy<Value = Invalid> {
    let mistakes = vec((select(Mistake::all()), select(&Direction::ALL[..])), 1..=4);
    (policy(NAMESPACES), mistakes).prop_map(|(mut policy, mistakes)| {
        policy.name = "policy".to_owned();
        let intended = policy.clone();
        let mut invalid = Invalid { policy, intended, errors: BTreeSet::new() };
        for (mistake, direction) in mistakes {
            invalid.add(mistake, direction);
        }
        invalid
    })
}

/// One mistake: what is written, and the errors it makes below the field it is written in.
#[derive(Debug, Clone)]
enum Mistake {
    Port(Port, Errors),
    Peer(Peer, Errors),
    Label(&'static str, &'static str, Errors),
    Expression(LabelSelectorRequirement, Errors),
    PolicyTypes(&'static [&'static str], Errors),
    Name(&'static str),
}

type Errors = &'static [(&'static str, Reason)];

impl Mistake {
    fn all() -> Vec<Mistake> {
        use Reason::{Forbidden, Invalid, NotSupported, Required};
        vec![
            port(Some("tcp"), None, None, &[(".protocol", NotSupported)]),
            port(Some("ICMP"), number(80), None, &[(".protocol", NotSupported)]),
            port(Some(""), None, None, &[(".protocol", NotSupported)]),
            port(None, number(0), None, &[(".port", Invalid)]),
            port(None, number(-1), None, &[(".port", Invalid)]),
            port(Some("UDP"), number(65536), None, &[(".port", Invalid)]),
            port(None, number(80), Some(65536), &[(".endPort", Invalid)]),
            port(None, number(80), Some(79), &[(".endPort", Invalid)]),
            port(None, number(80), Some(0), &[(".endPort", Invalid)]),
            port(None, None, Some(80), &[(".endPort", Invalid)]),
            port(None, name("http"), Some(80), &[(".endPort", Invalid)]),
            port(None, name("80"), None, &[(".port", Invalid)]),
            port(None, name("ht_tp"), None, &[(".port", Invalid)]),
            port(None, name("a--b"), None, &[(".port", Invalid)]),
            port(None, name("http-"), None, &[(".port", Invalid)]),
            port(None, name("longer-than-15-x"), None, &[(".port", Invalid)]),
            port(None, name("HTTP"), None, &[(".port", Invalid)]),
            port(Some("x"), number(0), None, &[(".protocol", NotSupported), (".port", Invalid)]),
            Mistake::Peer(Peer::default(), &[("", Required)]),
            Mistake::Peer(
                Peer { pod_selector: Some(LabelSelector::default()), ..block("10.0.0.0/8", &[]) },
                &[("", Forbidden)],
            ),
            Mistake::Peer(
                Peer { namespace_selector: Some(LabelSelector::default()), ..block("::/0", &[]) },
                &[("", Forbidden)],
            ),
            Mistake::Peer(block("", &[]), &[(".ipBlock.cidr", Required)]),
            Mistake::Peer(block("10.0.0.1", &[]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(block("10.0.0.0/33", &[]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(block("10.0.0/8", &[]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(block("10.0.0.256/8", &[]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(block("fd00::/129", &[]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(block("all", &["none"]), &[(".ipBlock.cidr", Invalid)]),
            Mistake::Peer(
                block("10.0.0.0/8", &["10.0.0.0/33"]),
                &[(".ipBlock.except[0]", Invalid)],
            ),
            Mistake::Peer(block("10.0.0.0/8", &["10.0.0.0/8"]), &[(".ipBlock.except[0]", Invalid)]),
            Mistake::Peer(
                block("10.0.0.0/8", &["10.1.0.0/16", "11.0.0.0/16"]),
                &[(".ipBlock.except[1]", Invalid)],
            ),
            Mistake::Peer(block("0.0.0.0/0", &["fd00::/16"]), &[(".ipBlock.except[0]", Invalid)]),
            Mistake::Peer(
                block("10.1.0.0/16", &["10.0.0.0/8"]),
                &[(".ipBlock.except[0]", Invalid)],
            ),
            Mistake::Label("two words", "a", &[(".matchLabels", Invalid)]),
            Mistake::Label("a/b/c", "a", &[(".matchLabels", Invalid)]),
            Mistake::Label("app", "two words", &[(".matchLabels", Invalid)]),
            Mistake::Label("app", "-a", &[(".matchLabels", Invalid)]),
            expression("app", "In", &[], &[(".values", Required)]),
            expression("app", "NotIn", &[], &[(".values", Required)]),
            expression("app", "Exists", &["a"], &[(".values", Forbidden)]),
            expression("app", "DoesNotExist", &["a"], &[(".values", Forbidden)]),
            expression("app", "in", &["a"], &[(".operator", Invalid)]),
            expression("app", "", &[], &[(".operator", Invalid)]),
            expression("app", "In", &["a", "two words"], &[(".values[1]", Invalid)]),
            expression("_app", "Exists", &[], &[(".key", Invalid)]),
            expression("", "Exists", &[], &[(".key", Invalid)]),
            Mistake::PolicyTypes(&["ingress"], &[("[0]", NotSupported)]),
            Mistake::PolicyTypes(&["Egress", "Both"], &[("[1]", NotSupported)]),
            Mistake::PolicyTypes(&["Ingress", "Egress", "Ingress"], &[("", Invalid)]),
            Mistake::Name("Upper"),
            Mistake::Name("under_score"),
        ]
    }
}

fn port(
    protocol: Option<&str>,
    port: Option<IntOrString>,
    end_port: Option<i32>,
    errors: Errors,
) -> Mistake {
    Mistake::Port(Port { protocol: protocol.map(str::to_owned), port, end_port }, errors)
}

fn number(port: i32) -> Option<IntOrString> {
    Some(IntOrString::Int(port))
}

fn name(port: &str) -> Option<IntOrString> {
    Some(IntOrString::String(port.to_owned()))
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|&e| e.to_owned()).collect();
    Peer { ip_block: Some(IpBlock { cidr: cidr.to_owned(), except }), ..Peer::default() }
}

fn expression(key: &str, operator: &str, values: &[&str], errors: Errors) -> Mistake {
    let values = values.iter().map(|&v| v.to_owned()).collect();
    let (key, operator) = (key.to_owned(), operator.to_owned());
    Mistake::Expression(LabelSelectorRequirement { key, operator, values }, errors)
}

impl Invalid {
    /// Puts a mistake where it disturbs nothing else: a rule of its own at the end of a section,
    /// or the end of the list it belongs to.
    fn add(&mut self, mistake: Mistake, direction: Direction) {
        match mistake {
            Mistake::Port(port, errors) => {
                let rule = Rule { ports: Some(vec![port]), ..Rule::default() };
                let path = self.add_rule(rule, direction);
                self.expect(&format!("{path}.ports[0]"), errors);
            }
            Mistake::Peer(peer, errors) => {
                // Behind a valid one, which does not heal the rule.
                let peers = vec![
                    Peer { pod_selector: Some(LabelSelector::default()), ..Peer::default() },
                    peer,
                ];
                let path = self.add_rule(Rule { peers: Some(peers), ..Rule::default() }, direction);
                self.expect(&format!("{path}.{}[1]", direction.peers()), errors);
            }
            Mistake::Label(key, value, errors) => {
                let match_labels = [(key.to_owned(), value.to_owned())].into();
                let selector = LabelSelector { match_labels, ..LabelSelector::default() };
                let peer = Peer { namespace_selector: Some(selector), ..Peer::default() };
                let rule = Rule { peers: Some(vec![peer]), ..Rule::default() };
                let path = self.add_rule(rule, direction);
                self.expect(&format!("{path}.{}[0].namespaceSelector", direction.peers()), errors);
            }
            Mistake::Expression(requirement, errors) => {
                let requirements = &mut self.policy.spec.pod_selector.match_expressions;
                requirements.push(requirement);
                let index = requirements.len() - 1;
                self.expect(&format!("spec.podSelector.matchExpressions[{index}]"), errors);
            }
            Mistake::PolicyTypes(types, errors) => {
                let types = types.iter().map(|&t| t.to_owned()).collect();
                self.policy.spec.policy_types = Some(types);
                self.errors.retain(|(path, _)| !path.starts_with("spec.policyTypes"));
                self.expect("spec.policyTypes", errors);
            }
            Mistake::Name(name) => {
                self.policy.name = name.to_owned();
                self.errors.retain(|(path, _)| path != "metadata.name");
                self.expect("metadata.name", &[("", Reason::Invalid)]);
            }
        }
    }

    fn add_rule(&mut self, rule: Rule, direction: Direction) -> String {
        let spec = &mut self.policy.spec;
        let section = match direction {
            Direction::Ingress => spec.ingress.get_or_insert_default(),
            Direction::Egress => spec.egress.get_or_insert_default(),
        };
        section.push(rule);
        format!("spec.{direction}[{}]", section.len() - 1)
    }

    fn expect(&mut self, path: &str, errors: Errors) {
        let errors = errors.iter().map(|&(below, reason)| (format!("{path}{below}"), reason));
        self.errors.extend(errors);
    }
}
