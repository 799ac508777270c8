//! From objects one by one to a cluster: what only shows when they stand side by side.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::labels::Selector;
use portcullis_core::model::{NAMESPACE_NAME_LABEL, Peer, Pod, Policy, Workload};
use portcullis_core::net::ByAddress;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Options;
use crate::annotations::Annotation;
use crate::callers::Caller;
use crate::decode::Problem;
use crate::diagnostic::{Diagnostic, Reason, Severity};
use crate::input::{Input, Meaning, PodPlace, ReadPolicy};
use crate::kind::Kind;
use crate::object::{Body, Found, Place, Written, label};
use crate::objects::{self, Object};

/// The label by which a Deployment tells its ReplicaSets apart; the name of each ends in it.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Fills the input with what was found, in order.
pub(crate) fn assemble(found: Vec<Found>, options: &Options, input: &mut Input) {
    let first = first_of_each(&found, input);
    let owners = Owners::of(&found);
    let mut workloads = Vec::new();
    for (found, is_first) in found.into_iter().zip(first) {
        let problems = found.problems.into_iter();
        let live = input.files[found.place.file].live;
        for problem in problems.filter(|p| !live || counts_in_a_cluster(&found.body, p)) {
            report(problem, &found.place, found.label.clone(), input);
        }
        if !is_first {
            continue;
        }
        if let Some((kind, ..)) = key(&found.body) {
            *input.read.entry(kind.as_str()).or_default() += 1;
        }
        for (at, call) in found.calls {
            let object = found.label.clone().unwrap_or_default();
            let location = input.location_at(&found.place, at);
            input.callers.push(Caller { object, location, call });
        }
        let valid = matches!(&found.body, Body::Policy(written) if written.valid);
        let policy = valid.then_some(input.cluster.policies.len());
        for (at, name, value) in found.annotations {
            let object = one_line(found.label.clone().unwrap_or_default());
            let location = input.location_at(&found.place, at);
            let name = one_line(name);
            input.annotations.push(Annotation { object, policy, location, name, value });
        }
        match found.body {
            Body::Nothing => {}
            Body::PassedOver(kind, custom) => {
                *input.passed_over.entry(kind).or_default() += 1;
                input.custom.extend(custom);
            }
            Body::Policy(policy) => take_policy(*policy, found.place, input),
            Body::Object(object) => {
                take(*object, found.place, &owners, &mut workloads, input);
            }
        }
    }
    expand(workloads, &owners, options, input);
    shared_addresses(input);
    unknown_namespaces(input);
}

/// Whether a finding is one in a live cluster, which may be newer than this program: fields that are
/// not known here are nobody's mistake. In a policy they can change what it means, so there they
/// count. Of a workload only its owner is taken.
fn counts_in_a_cluster(body: &Body, problem: &Problem) -> bool {
    match body {
        Body::Policy(_) => true,
        Body::Object(object) if matches!(**object, Object::Workload(_)) => false,
        _ => problem.reason != Reason::UnknownField,
    }
}

fn report(problem: Problem, place: &Place, object: Option<String>, input: &mut Input) {
    let location = input.location_at(place, problem.at);
    input.diagnostics.push(Diagnostic {
        severity: problem.severity,
        location: Some(location),
        object: object.map(one_line),
        path: one_line(problem.path),
        reason: problem.reason,
        message: one_line(problem.message),
    });
}

/// Keys and names come from the input as they are, and may have line breaks in them.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = text.chars().map(|c| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    });
    escaped.collect()
}

/// Kind, namespace and name of an object that is read.
fn key(body: &Body) -> Option<(Kind, &str, &str)> {
    let object = match body {
        Body::Policy(policy) => {
            return Some((Kind::NetworkPolicy, &policy.raw.namespace, &policy.raw.name));
        }
        Body::Object(object) => object,
        Body::PassedOver(..) | Body::Nothing => return None,
    };
    Some(match &**object {
        Object::Namespace { name, .. } => (Kind::Namespace, "", name),
        Object::Pod(pod, _) => (Kind::Pod, &pod.namespace, &pod.name),
        Object::Node(node) => (Kind::Node, "", &node.name),
        Object::Service(service) => (Kind::Service, &service.namespace, &service.name),
        Object::Workload(w) => (w.kind, &w.namespace, &w.name),
        Object::Route(kind, route) => (*kind, &route.namespace, &route.name),
        Object::IngressClass(name, _) => (Kind::IngressClass, "", name),
        Object::Gateway(namespace, name, _) => (Kind::Gateway, namespace, name),
    })
}

/// Tells for each whether it is the first of its name, and reports the others. An object without
/// a name has been refused already.
fn first_of_each(found: &[Found], input: &mut Input) -> Vec<bool> {
    let mut seen: FxHashMap<_, &Found> = FxHashMap::default();
    let mut first = Vec::with_capacity(found.len());
    for this in found {
        let Some(key) = key(&this.body).filter(|(_, _, name)| !name.is_empty()) else {
            first.push(true);
            continue;
        };
        let Some(other) = seen.get(&key) else {
            seen.insert(key, this);
            first.push(true);
            continue;
        };
        first.push(false);
        let equal = match (&this.body, &other.body) {
            (Body::Policy(a), Body::Policy(b)) => a == b,
            (Body::Object(a), Body::Object(b)) => a == b,
            _ => false,
        };
        let place = input.location(&other.place);
        let (severity, reason, message) = if equal {
            (Severity::Warning, Reason::Repeated, format!("is there already, the same, at {place}"))
        } else {
            let message =
                format!("is there already, and different, at {place}: only that one counts");
            (Severity::Error, Reason::Conflict, message)
        };
        let problem = Problem { severity, at: this.place.at, path: String::new(), reason, message };
        report(problem, &this.place, Some(label(key.0, key.1, key.2)), input);
    }
    first
}

fn take_policy(Written { raw, closed, valid }: Written, place: Place, input: &mut Input) {
    let meaning = match valid {
        true => {
            input.cluster.policies.push(closed);
            input.places.policies.push(place);
            Meaning::Valid(input.cluster.policies.len() - 1)
        }
        false => Meaning::Closed(Box::new(closed)),
    };
    input.policies.push(ReadPolicy { raw, meaning });
}

/// Takes an object into the cluster; workloads are for later.
fn take(
    object: Object,
    place: Place,
    owners: &Owners,
    workloads: &mut Vec<(objects::Workload, Place)>,
    input: &mut Input,
) {
    let cluster = &mut input.cluster;
    match object {
        Object::Namespace { name, mut labels, mode } => {
            let said = labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
            if let Some(said) = said.filter(|said| *said != name) {
                let path = format!("metadata.labels[{NAMESPACE_NAME_LABEL}]");
                let message =
                    format!("{path}: is always the name of the namespace: {said:?} has no effect");
                let at = input.find(&place, &path).unwrap_or(place.at);
                let (severity, reason) = (Severity::Warning, Reason::NamespaceName);
                let problem = Problem { severity, at, path, reason, message };
                let label = label(Kind::Namespace, "", &name);
                report(problem, &place, Some(label), input);
            }
            input.cluster.namespaces.insert(name.clone(), labels);
            if let Some(mode) = mode {
                input.cluster.modes.insert(name.clone(), mode);
            }
            input.places.namespaces.insert(name, place);
        }
        Object::Pod(mut pod, owner) => {
            let owner = owner.filter(|(kind, _)| kind != "Node");
            let chain = owner.map(|owner| owners.chain(&pod.namespace, owner, Some(&pod)));
            pod.workload = chain.and_then(|mut chain| chain.pop()).map(workload);
            cluster.pods.push(pod);
            input.places.pods.push(PodPlace { place, template: None });
        }
        Object::Node(node) => {
            cluster.nodes.push(node);
            input.places.nodes.push(place);
        }
        Object::Service(service) => {
            cluster.services.push(service);
            input.places.services.push(place);
        }
        Object::Workload(w) => workloads.push((w, place)),
        Object::Route(_, route) => cluster.routing.routes.push(route),
        Object::IngressClass(name, controller) => {
            cluster.routing.ingress_classes.insert(name, controller);
        }
        Object::Gateway(namespace, name, class) => {
            cluster.routing.gateways.insert((namespace, name), class);
        }
    }
}

fn workload((kind, name): (String, String)) -> Workload {
    Workload { kind, name }
}

/// Who owns what, as far as the input says.
#[derive(Default)]
struct Owners {
    /// For each workload of the input: its owner, if it has one. By namespace, kind and name.
    workloads: FxHashMap<(String, String, String), Option<(String, String)>>,
    /// The workloads that have pods of their own in the input.
    with_pods: FxHashSet<(String, String, String)>,
}

impl Owners {
    fn of(found: &[Found]) -> Owners {
        let mut owners = Owners::default();
        for found in found {
            if let Body::Object(object) = &found.body
                && let Object::Workload(w) = &**object
            {
                let key = (w.namespace.clone(), w.kind.as_str().to_owned(), w.name.clone());
                owners.workloads.insert(key, w.owner.clone());
            }
        }
        for found in found {
            if let Body::Object(object) = &found.body
                && let Object::Pod(pod, Some(owner)) = &**object
            {
                for (kind, name) in owners.chain(&pod.namespace, owner.clone(), Some(pod)) {
                    owners.with_pods.insert((pod.namespace.clone(), kind, name));
                }
            }
        }
        owners
    }

    /// An owner, its owner, and so on. A ReplicaSet that is not in the input, and whose name ends
    /// in the pod's template hash, is of the Deployment that the rest of its name is.
    fn chain(
        &self,
        namespace: &str,
        owner: (String, String),
        pod: Option<&Pod>,
    ) -> Vec<(String, String)> {
        // No real chain is as long; one that runs in a circle is cut.
        const LONGEST: usize = 8;
        let mut chain = vec![owner];
        while let Some((kind, name)) = chain.last()
            && chain.len() < LONGEST
        {
            let next = match self.workloads.get(&(namespace.to_owned(), kind.clone(), name.clone()))
            {
                Some(owner) => owner.clone(),
                None if kind == "ReplicaSet" => pod
                    .and_then(|pod| pod.labels.get(POD_TEMPLATE_HASH))
                    .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
                    .map(|deployment| ("Deployment".to_owned(), deployment.to_owned())),
                None => None,
            };
            let Some(next) = next.filter(|next| !chain.contains(next)) else { break };
            chain.push(next);
        }
        chain
    }
}

/// Makes the pods that workloads stand for, unless pods of theirs are in the input.
fn expand(
    workloads: Vec<(objects::Workload, Place)>,
    owners: &Owners,
    options: &Options,
    input: &mut Input,
) {
    let pods = input.cluster.pods.iter();
    let mut names: FxHashSet<_> = pods.map(|p| (p.namespace.clone(), p.name.clone())).collect();
    for (w, place) in workloads {
        // The pods of a live cluster are all that there are.
        if input.files[place.file].live {
            continue;
        }
        let own = (w.kind.as_str().to_owned(), w.name.clone());
        let key = (w.namespace.clone(), own.0.clone(), own.1.clone());
        let chain = owners.chain(&w.namespace, own, None);
        // An owner in the input stands for what it owns.
        let stands_for_itself = !chain[1..].iter().any(|(kind, name)| {
            owners.workloads.contains_key(&(w.namespace.clone(), kind.clone(), name.clone()))
        });
        if owners.with_pods.contains(&key) || !stands_for_itself {
            continue;
        }
        let nodes = u32::try_from(input.cluster.nodes.len()).unwrap_or(u32::MAX);
        let wanted = if w.kind == Kind::DaemonSet { nodes.max(1) } else { w.replicas };
        if wanted == 0 {
            let path = if w.kind == Kind::Job { "" } else { "spec.replicas" };
            let at = input.find(&place, path).unwrap_or(place.at);
            let message = match w.kind {
                Kind::Job => "is complete: it stands for no pods".to_owned(),
                _ => format!("{path}: is 0: it stands for no pods"),
            };
            let (severity, reason) = (Severity::Note, Reason::NoPods);
            let problem = Problem { severity, at, path: path.to_owned(), reason, message };
            report(problem, &place, Some(label(w.kind, &w.namespace, &w.name)), input);
        }
        let outermost = chain.into_iter().last().map(workload);
        let mut ordinals = 0u32..;
        for _ in 0..wanted.min(options.replicas) {
            let free = ordinals.find_map(|n| {
                let name = format!("{}-{n}", w.name);
                names.insert((w.namespace.clone(), name.clone())).then_some(name)
            });
            input.cluster.pods.push(Pod {
                name: free.unwrap_or_default(),
                workload: outermost.clone(),
                ..w.template.clone()
            });
            let template = Some(objects::Workload::template_path(w.kind));
            input.places.pods.push(PodPlace { place: place.clone(), template });
        }
    }
}

/// Two pods cannot have one address at one time, unless it is that of their node.
fn shared_addresses(input: &mut Input) {
    let mut owners: ByAddress<usize> = ByAddress::default();
    let mut problems = Vec::new();
    for (i, pod) in input.cluster.pods.iter().enumerate() {
        if pod.finished || pod.host_network {
            continue;
        }
        for address in &pod.addresses {
            let owner = *owners.entry(*address).or_insert(i);
            if owner != i {
                problems.push((i, owner, *address));
            }
        }
    }
    for (i, owner, address) in problems {
        let (pod, other) = (&input.cluster.pods[i], &input.cluster.pods[owner]);
        let message = format!(
            "status.podIPs: {address} is the address of pod {}/{} too, at {}",
            other.namespace,
            other.name,
            input.location(&input.places.pods[owner].place)
        );
        let label = label(Kind::Pod, &pod.namespace, &pod.name);
        let place = input.places.pods[i].place.clone();
        let path = "status.podIPs".to_owned();
        let at = input.find(&place, &path).unwrap_or(place.at);
        let (severity, reason) = (Severity::Error, Reason::SharedAddress);
        report(Problem { severity, at, path, reason, message }, &place, Some(label), input);
    }
}

/// Notes the namespaces of which only the name is known, if any policy asks for more.
fn unknown_namespaces(input: &mut Input) {
    if !input.cluster.policies.iter().any(asks_for_labels) {
        return;
    }
    let (cluster, places) = (&input.cluster, &input.places);
    let pods = cluster.pods.iter().zip(&places.pods).map(|(p, at)| (&p.namespace, &at.place));
    let policies = cluster.policies.iter().zip(&places.policies).map(|(p, at)| (&p.namespace, at));
    let services = cluster.services.iter().zip(&places.services).map(|(s, at)| (&s.namespace, at));
    let mut unknown: BTreeMap<&String, &Place> = BTreeMap::new();
    for (namespace, place) in pods.chain(policies).chain(services) {
        if !cluster.namespaces.contains_key(namespace) {
            unknown.entry(namespace).or_insert(place);
        }
    }
    let unknown: Vec<_> = unknown.into_iter().map(|(n, p)| (n.clone(), p.clone())).collect();
    for (namespace, place) in unknown {
        let message = format!(
            "namespace {namespace} is not in the input: only its label {NAMESPACE_NAME_LABEL} is known"
        );
        let (severity, reason) = (Severity::Note, Reason::UnknownNamespace);
        let problem = Problem { severity, at: place.at, path: String::new(), reason, message };
        report(problem, &place, None, input);
    }
}

/// Whether a peer of the policy selects namespaces by any label but that of their name.
fn asks_for_labels(policy: &Policy) -> bool {
    let other = |selector: &Selector| {
        let keys = selector.match_expressions.iter().map(|r| &r.key);
        let keys: BTreeSet<_> = selector.match_labels.keys().chain(keys).collect();
        keys.iter().any(|key| *key != NAMESPACE_NAME_LABEL)
    };
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    rules.flat_map(|rule| &rule.peers).any(|peer| match peer {
        Peer::Pods { namespaces: Some(selector), .. } => other(selector),
        _ => false,
    })
}
