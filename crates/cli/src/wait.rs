//! `portcullis wait`: until policies are in force wherever they select a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use portcullis_cni::protocol::Holding;
use portcullis_core::labels::Selector;
use portcullis_core::model::{MODE_ANNOTATION, Mode, Pod};
use portcullis_kube::live::{Agents, Kind, Known, Object};
use portcullis_kube::{Input, ObjectRef, Options, ReadPolicy, Severity, load};

use crate::agents::{Agent, AgentArgs, Line, Reach, each};
use crate::in_force::{Wanted, holding};
use crate::input::{duration, line, sources};
use crate::output::{plural, print};
use crate::style::ERROR;
use crate::trouble::Trouble;

/// How long until it is looked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Wait until policies are in force on every node that runs a pod that they select
#[derive(Debug, clap::Args)]
#[command(
    after_help = "From then on no packet passes that the policies refuse, also none of connections \
                        that were open before. It is about what the API server has when it is asked, \
                        whatever the manifests of -f say.\n\n\
                        Exits 1 if the time is over; what lags, and where, is said then.\n\n\
                        Examples:\n  \
                        portcullis wait policy/db -n shop --for=enforced\n  \
                        portcullis wait policy/db policy/web -n shop --for=audit --timeout=2m\n  \
                        portcullis wait policy --all -n shop\n  \
                        portcullis wait policy -l tier=db -A\n  \
                        portcullis wait -f policies.yaml"
)]
#[command(group(clap::ArgGroup::new("which").args(["all", "selector"])))]
pub(crate) struct Wait {
    /// The policies: policy/NAME, or policy NAME; the kind can be networkpolicy or netpol, too
    #[arg(value_name = "policy/NAME")]
    #[arg(required_unless_present_any = ["all", "selector", "filename", "kustomize"])]
    #[arg(conflicts_with_all = ["filename", "kustomize"])]
    policies: Vec<String>,
    /// All policies of the namespace that there are at first
    #[arg(long, conflicts_with_all = ["filename", "kustomize"])]
    all: bool,
    /// The policies of the namespace that have these labels at first, such as app=web,tier!=db
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with_all = ["filename", "kustomize"])]
    selector: Option<Selector>,
    /// Those of all namespaces, with --all or -l
    #[arg(short = 'A', long, requires = "which", conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Manifest file, directory of them, or - for standard input: the policies that are in there;
    /// may be repeated
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Directory with a kustomization: the policies that kustomize makes of it; may be repeated
    #[arg(short = 'k', long, value_name = "DIR")]
    kustomize: Vec<PathBuf>,
    /// Read directories with everything below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of policies that give none [default: that of the context, else default]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// What is waited for
    #[arg(long = "for", value_enum, default_value_t = For::Enforced, value_name = "CONDITION")]
    condition: For,
    /// How long, such as 30s or 2m; 0s looks once
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    agents: AgentArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum For {
    /// What it refuses is refused
    Enforced,
    /// What it refuses is reported, and passes
    Audit,
}

/// As other times, and none at all.
fn timeout(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => duration(text),
    }
}

/// What a NetworkPolicy is called before its name.
const KINDS: [&str; 6] = [
    "policy",
    "netpol",
    "networkpolicy",
    "networkpolicies",
    "networkpolicy.networking.k8s.io",
    "networkpolicies.networking.k8s.io",
];

/// The names among the arguments, as kubectl takes them: each with its kind, or all after one kind.
fn names(arguments: &[String]) -> Result<Vec<String>, String> {
    let is_kind = |text: &str| KINDS.contains(&&*text.to_lowercase());
    let is_name = |text: &str| !text.is_empty() && !text.contains('/');
    let name = |text: &String| match text.split_once('/') {
        Some((kind, name)) if is_kind(kind) && is_name(name) => Ok(name.to_owned()),
        _ => Err(format!("expected policy/NAME, found {text:?}")),
    };
    match arguments.split_first() {
        Some((kind, names)) if is_kind(kind) => match names.iter().find(|name| !is_name(name)) {
            Some(other) => Err(format!("expected a name after {kind:?}, found {other:?}")),
            None => Ok(names.to_vec()),
        },
        _ => arguments.iter().map(name).collect(),
    }
}

/// A policy that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    namespace: String,
    name: String,
}

impl Wait {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let usage = |text: String| clap::Error::raw(ErrorKind::InvalidValue, text + "\n");
        let names = names(&self.policies).map_err(usage)?;
        match (self.all || self.selector.is_some(), names.is_empty()) {
            (true, false) => return Err(usage("--all and -l go without names".to_owned()).into()),
            (false, true) if !self.policies.is_empty() => {
                return Err(usage(format!(
                    "give a name after {}, or --all or -l",
                    self.policies[0]
                ))
                .into());
            }
            _ => {}
        }
        let api = self.agents.live.access().agents()?;
        let mut open = self.targets(&api, names)?;
        let several =
            open.first().map(|first| &first.namespace) != open.last().map(|last| &last.namespace);
        let mode = match self.condition {
            For::Enforced => Mode::Enforce,
            For::Audit => Mode::Audit,
        };
        let reach = self.agents.reach()?;
        let mut waiting = Waiting { api, reach, mode, lines: BTreeMap::new() };
        let until = Instant::now() + self.timeout;
        loop {
            let lags = waiting.lags(&open)?;
            for (target, lags) in &lags {
                if lags.is_empty() {
                    let name = &target.name;
                    print(&format!("networkpolicy.networking.k8s.io/{name} condition met\n"))?;
                    open.remove(target);
                }
            }
            if open.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            if Instant::now() >= until {
                for (Target { namespace, name }, lags) in
                    lags.iter().filter(|(_, lags)| !lags.is_empty())
                {
                    let place = if several { format!(" of {namespace}") } else { String::new() };
                    anstream::eprintln!(
                        "{ERROR}error{ERROR:#}: timed out waiting for the condition on \
                         networkpolicies/{name}{place}:"
                    );
                    lags.iter().for_each(|lag| anstream::eprintln!("  {lag}"));
                }
                return Ok(ExitCode::FAILURE);
            }
            thread::sleep(AGAIN.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// What is waited for.
    fn targets(&self, api: &Agents, names: Vec<String>) -> Result<BTreeSet<Target>, Trouble> {
        let namespace = self.namespace.as_deref().unwrap_or(api.namespace());
        let target = |namespace: &str, name: &str| Target {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if !names.is_empty() {
            return Ok(names.iter().map(|name| target(namespace, name)).collect());
        }
        let in_manifests = !self.filename.is_empty() || !self.kustomize.is_empty();
        let (targets, place): (BTreeSet<Target>, String) = if !in_manifests {
            let only = (!self.all_namespaces).then_some(namespace);
            let labels = self.selector.clone().unwrap_or_default();
            let policies = api.select(Kind::Policy, only, &labels)?;
            let names = policies.iter().map(|policy| policy.body.name());
            let mut place =
                only.map_or("any namespace".to_owned(), |name| format!("the namespace {name}"));
            if self.selector.is_some() {
                place += &format!(" with {labels} (-l)");
            }
            (names.map(|(namespace, name)| target(namespace, name)).collect(), place)
        } else {
            let sources = sources(&self.filename, &self.kustomize)?;
            let (namespace, recursive) = (namespace.to_owned(), self.recursive);
            let input = load(&sources, &Options { namespace, recursive, ..Options::default() });
            let errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
            let errors = errors.inspect(|error| anstream::eprintln!("{}", line(error))).count();
            if errors > 0 {
                return Err(Trouble::NotWaited(plural(errors, "error")));
            }
            let targets = input.policies.iter().map(|policy| {
                named(&input, policy)?;
                Ok(target(&policy.raw.namespace, &policy.raw.name))
            });
            (targets.collect::<Result<_, Trouble>>()?, "the manifests".to_owned())
        };
        if targets.is_empty() { Err(Trouble::NoPolicies(place)) } else { Ok(targets) }
    }
}

/// Whether the manifest gives a policy its name. With `generateName` the API server does, and then
/// nothing can be found by the manifest.
fn named(input: &Input, policy: &ReadPolicy) -> Result<(), Trouble> {
    let Some(index) = policy.index() else { return Ok(()) };
    let text = |field| input.policy_text(index, &["metadata", field]);
    match (text("name"), text("generateName")) {
        (None, Some(prefix)) => {
            let place = input.locate(ObjectRef::Policy(index), "metadata.generateName");
            let place = place.map_or_else(String::new, |place| format!("{place}: "));
            Err(Trouble::NamedByServer { place, prefix })
        }
        _ => Ok(()),
    }
}

struct Waiting {
    api: Agents,
    reach: Reach,
    mode: Mode,
    /// The agents that are being talked to.
    lines: BTreeMap<Agent, Line>,
}

impl Waiting {
    /// Why each is not in force everywhere, a line for each reason.
    fn lags(
        &mut self,
        targets: &BTreeSet<Target>,
    ) -> Result<BTreeMap<Target, Vec<String>>, Trouble> {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for Target { namespace, name } in targets {
            names.entry(namespace).or_default().insert(name);
        }
        let mut lags = BTreeMap::new();
        let mut asked_of = Vec::new();
        for (namespace, names) in names {
            for wanted in self.wanted(namespace, &names)? {
                let (is, wants) = (wanted.mode, self.mode);
                if is == wants {
                    asked_of.push(wanted);
                    continue;
                }
                let why = format!(
                    "its mode is {is}, not {wants}: the annotation {MODE_ANNOTATION} of the policy or \
                     its namespace says so"
                );
                lags.insert(Target { namespace: wanted.namespace, name: wanted.name }, vec![why]);
            }
        }
        // After the pods were listed: what an agent says now, it says of these at least.
        let lags_of = self.ask(&asked_of)?;
        let targets = asked_of.into_iter().map(|w| Target { namespace: w.namespace, name: w.name });
        lags.extend(targets.zip(lags_of));
        Ok(lags)
    }

    /// Policies of one namespace as the API server has them.
    fn wanted(&self, namespace: &str, names: &BTreeSet<&str>) -> Result<Vec<Wanted>, Trouble> {
        let policies: Vec<Object> = match names.first() {
            Some(only) if names.len() == 1 => {
                self.api.get(Kind::Policy, namespace, only)?.into_iter().collect()
            }
            _ => self.api.list(Kind::Policy, Some(namespace))?,
        };
        let policies: BTreeMap<&str, &Object> =
            policies.iter().map(|policy| (policy.body.name().1, policy)).collect();
        let of_namespace = match self.api.get(Kind::Namespace, "", namespace)?.map(|o| o.body) {
            Some(Known::Namespace(_, _, mode)) => mode,
            _ => None,
        };
        let pods = self.api.list(Kind::Pod, Some(namespace))?;
        let pods = pods.into_iter().filter_map(|object| match object.body {
            Known::Pod(pod) => Some(pod),
            _ => None,
        });
        let pods: Vec<Pod> = pods.collect();
        let wanted = names.iter().map(|name| {
            let policy = policies.get(name);
            let wanted = policy.and_then(|policy| Wanted::of(policy, of_namespace, pods.iter()));
            let missing =
                || Trouble::NoPolicy { namespace: namespace.to_owned(), name: (*name).to_owned() };
            wanted.ok_or_else(missing)
        });
        wanted.collect()
    }

    /// Asks the agents of the nodes that have to do with these policies, and tells of each policy why
    /// it is not in force everywhere.
    fn ask(&mut self, wanted: &[Wanted]) -> Result<Vec<Vec<String>>, Trouble> {
        let is_there = |wanted: &Wanted, agent: &Agent| match agent {
            Agent::Pod(pod) => wanted.nodes.contains_key(&pod.node),
            Agent::Socket(_) => true,
        };
        let mut relevant = self.reach.agents()?;
        relevant.retain(|agent| wanted.iter().any(|wanted| is_there(wanted, agent)));
        let lines = relevant.into_iter().map(|agent| (self.lines.remove(&agent), agent)).collect();
        self.lines.clear();
        let reach = &self.reach;
        let asked = each(lines, |(line, agent): (Option<Line>, Agent)| {
            let line = line.map_or_else(|| reach.connect(&agent), Ok);
            let answer = line.and_then(|mut line| {
                let there = wanted.iter().enumerate().filter(|(_, w)| is_there(w, &agent));
                let holding = there.map(|(i, wanted)| {
                    let name = (&*wanted.namespace, &*wanted.name);
                    holding(&mut line, Some(name)).map(|holding| (i, holding))
                });
                let holding: Vec<(usize, Holding)> = holding.collect::<Result<_, _>>()?;
                Ok((line, holding))
            });
            (agent, answer)
        });
        // What the agents of each node say: while one takes another's place there are two.
        let mut lags: Vec<BTreeMap<&str, Vec<Option<String>>>> = wanted
            .iter()
            .map(|wanted| wanted.nodes.keys().map(|node| (&**node, Vec::new())).collect())
            .collect();
        let mut others = Vec::new();
        for (agent, answer) in asked {
            match (answer, &agent) {
                (Ok((line, holdings)), _) => {
                    for (i, holding) in holdings {
                        if let Some(said) = lags[i].get_mut(&*holding.node) {
                            said.push(lag_of(&wanted[i], &holding));
                        }
                    }
                    self.lines.insert(agent, line);
                }
                (Err(why), Agent::Pod(pod)) => {
                    for said in lags.iter_mut().filter_map(|lags| lags.get_mut(&*pod.node)) {
                        said.push(Some(why.clone()));
                    }
                }
                (Err(why), Agent::Socket(_)) => others.push(why),
            }
        }
        let lines = lags.into_iter().map(|lags| {
            let lags = lags.into_iter().filter_map(|(node, said)| Some((node, lag_of_all(said)?)));
            let lags: Vec<String> = lags.map(|(node, lag)| format!("{node}: {lag}")).collect();
            if lags.is_empty() { lags } else { lags.into_iter().chain(others.clone()).collect() }
        });
        Ok(lines.collect())
    }
}

/// Why a node does not enforce a policy, by what all of its agents say: one that lags is enough.
fn lag_of_all(said: Vec<Option<String>>) -> Option<String> {
    match said.is_empty() {
        true => Some("no agent runs there".to_owned()),
        false => said.into_iter().flatten().next(),
    }
}

/// Why a node does not enforce a policy at all its pods, by what its agent says of it alone.
fn lag_of(wanted: &Wanted, holding: &Holding) -> Option<String> {
    let held = holding.policies.first();
    let lag = wanted.lag(&holding.node, held);
    let known = |address| held.is_some_and(|held| held.addresses.contains(address));
    let lag = lag.or_else(|| {
        let addresses = &wanted.nodes.get(&holding.node)?.addresses;
        let unknown = addresses.iter().find(|address| !known(*address))?;
        Some(format!("not yet at {unknown}"))
    });
    let open = "connections that were open before are not judged yet";
    lag.or_else(|| (!holding.settled).then(|| open.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_done_when_each_of_its_agents_is() {
        let lag = || Some("not yet at 10.0.0.1".to_owned());
        assert_eq!(lag_of_all(vec![None]), None);
        assert_eq!(lag_of_all(vec![None, lag()]), lag());
        assert_eq!(lag_of_all(vec![lag(), None]), lag());
        assert_eq!(lag_of_all(Vec::new()).as_deref(), Some("no agent runs there"));
    }

    fn names_of(arguments: &[&str]) -> Result<Vec<String>, String> {
        names(&arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_come_with_a_kind_each_or_after_one() {
        let named = |arguments: &[&str]| names_of(arguments).unwrap().join(" ");
        assert_eq!(named(&["policy/db", "NetPol/web"]), "db web");
        assert_eq!(named(&["networkpolicy", "db", "policy"]), "db policy");
        assert_eq!(named(&["networkpolicies.networking.k8s.io"]), "");
        for (arguments, why) in [
            (vec!["db"], "expected policy/NAME, found \"db\""),
            (vec!["pod/db"], "expected policy/NAME, found \"pod/db\""),
            (vec!["policy/"], "expected policy/NAME, found \"policy/\""),
            (vec!["policy/db", "web"], "expected policy/NAME, found \"web\""),
            (vec!["policy", "policy/db"], "expected a name after \"policy\", found \"policy/db\""),
        ] {
            assert_eq!(names_of(&arguments), Err(why.to_owned()));
        }
    }
}
