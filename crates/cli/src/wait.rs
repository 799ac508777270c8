//! `portcullis wait`: until a policy is in force wherever it selects a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_cni::protocol::Holding;
use portcullis_core::model::{MODE_ANNOTATION, Mode, Pod};
use portcullis_kube::live::{Agents, Kind, Known};

use crate::agents::{Agent, AgentArgs, Line, Reach, each};
use crate::in_force::{Wanted, holding};
use crate::input::duration;
use crate::output::print;
use crate::style::ERROR;
use crate::trouble::Trouble;

/// How long until it is looked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Wait until a policy is in force on every node that runs a pod that it selects
#[derive(Debug, clap::Args)]
#[command(
    after_help = "From then on no packet passes that the policy refuses, also none of connections \
                        that were open before.\n\n\
                        Exits 1 if the time is over; what lags, and where, is said then.\n\n\
                        Examples:\n  \
                        portcullis wait policy/db -n shop --for=enforced\n  \
                        portcullis wait policy/db policy/web -n shop --for=audit --timeout=2m"
)]
pub(crate) struct Wait {
    /// The policies: policy/NAME, or as kubectl calls it, networkpolicy/NAME or netpol/NAME
    #[arg(value_name = "policy/NAME", required = true, value_parser = name)]
    policies: Vec<String>,
    /// Namespace of the policies [default: that of the context, else default]
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

/// A name as kubectl takes it, with its kind before it.
fn name(text: &str) -> Result<String, String> {
    const KINDS: [&str; 6] = [
        "policy",
        "netpol",
        "networkpolicy",
        "networkpolicies",
        "networkpolicy.networking.k8s.io",
        "networkpolicies.networking.k8s.io",
    ];
    match text.split_once('/') {
        Some((kind, name)) if KINDS.contains(&&*kind.to_lowercase()) && !name.is_empty() => {
            Ok(name.to_owned())
        }
        _ => Err("expected policy/NAME".to_owned()),
    }
}

impl Wait {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let api = self.agents.live.access().agents()?;
        let reach = self.agents.reach()?;
        let namespace = self.namespace.clone().unwrap_or_else(|| api.namespace().to_owned());
        let mode = match self.condition {
            For::Enforced => Mode::Enforce,
            For::Audit => Mode::Audit,
        };
        let mut waiting = Waiting { api, reach, namespace, mode, lines: BTreeMap::new() };
        let until = Instant::now() + self.timeout;
        let mut open: BTreeSet<&String> = self.policies.iter().collect();
        loop {
            let mut lags = Vec::new();
            for policy in open.clone() {
                let lag = waiting.lags(policy)?;
                if lag.is_empty() {
                    open.remove(policy);
                    print(&format!("networkpolicy.networking.k8s.io/{policy} condition met\n"))?;
                }
                lags.push((policy, lag));
            }
            if open.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            if Instant::now() >= until {
                for (policy, lags) in lags.iter().filter(|(_, lags)| !lags.is_empty()) {
                    anstream::eprintln!(
                        "{ERROR}error{ERROR:#}: timed out waiting for the condition on \
                         networkpolicies/{policy}:"
                    );
                    lags.iter().for_each(|lag| anstream::eprintln!("  {lag}"));
                }
                return Ok(ExitCode::FAILURE);
            }
            thread::sleep(AGAIN.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

struct Waiting {
    api: Agents,
    reach: Reach,
    namespace: String,
    mode: Mode,
    /// The agents that are being talked to.
    lines: BTreeMap<Agent, Line>,
}

impl Waiting {
    /// Why a policy is not in force everywhere, a line for each reason.
    fn lags(&mut self, name: &str) -> Result<Vec<String>, Trouble> {
        let missing =
            || Trouble::NoPolicy { namespace: self.namespace.clone(), name: name.to_owned() };
        let policy = self.api.get(Kind::Policy, &self.namespace, name)?.ok_or_else(missing)?;
        let of_namespace = match self.api.get(Kind::Namespace, "", &self.namespace)?.map(|o| o.body)
        {
            Some(Known::Namespace(_, _, mode)) => mode,
            _ => None,
        };
        let pods = self.api.list(Kind::Pod, Some(&self.namespace))?;
        let pods = pods.into_iter().filter_map(|object| match object.body {
            Known::Pod(pod) => Some(pod),
            _ => None,
        });
        let pods: Vec<Pod> = pods.collect();
        let wanted = Wanted::of(&policy, of_namespace, pods.iter()).ok_or_else(missing)?;
        if wanted.mode != self.mode {
            let (is, wants) = (wanted.mode, self.mode);
            return Ok(vec![format!(
                "its mode is {is}, not {wants}: the annotation {} of the policy or its namespace says \
                 so",
                MODE_ANNOTATION
            )]);
        }
        // After the pods were listed: what an agent says now, it says of these at least.
        let mut relevant = self.reach.agents()?;
        relevant.retain(|agent| match agent {
            Agent::Pod(pod) => wanted.nodes.contains_key(&pod.node),
            Agent::Socket(_) => true,
        });
        let lines = relevant.into_iter().map(|agent| (self.lines.remove(&agent), agent)).collect();
        self.lines.clear();
        let (reach, namespace) = (&self.reach, &self.namespace);
        let asked = each(lines, |(line, agent): (Option<Line>, Agent)| {
            let line = line.map_or_else(|| reach.connect(&agent), Ok);
            let answer = line.and_then(|mut line| {
                let holding = holding(&mut line, Some((namespace, name)))?;
                Ok((line, holding))
            });
            (agent, answer)
        });
        let nobody = "no agent runs there".to_owned();
        let mut lags: BTreeMap<&str, Option<String>> =
            wanted.nodes.keys().map(|node| (&**node, Some(nobody.clone()))).collect();
        let mut others = Vec::new();
        for (agent, answer) in asked {
            match (answer, &agent) {
                (Ok((line, holding)), _) => {
                    if let Some(lag) = lags.get_mut(&*holding.node) {
                        *lag = lag_of(&wanted, &holding);
                    }
                    self.lines.insert(agent, line);
                }
                (Err(why), Agent::Pod(pod)) => {
                    if let Some(lag) = lags.get_mut(&*pod.node) {
                        *lag = Some(why);
                    }
                }
                (Err(why), Agent::Socket(_)) => others.push(why),
            }
        }
        let lags = lags.into_iter().filter_map(|(node, lag)| Some(format!("{node}: {}", lag?)));
        let lags: Vec<String> = lags.collect();
        Ok(if lags.is_empty() { lags } else { lags.into_iter().chain(others).collect() })
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
