//! `portcullis status`: what is in force where.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use portcullis_cni::protocol::Held;
use portcullis_core::model::{Mode, Pod};
use portcullis_kube::live::{Kind, Known};
use serde::Serialize;

use crate::agents::{Agent, AgentArgs, each};
use crate::in_force::{Wanted, holding};
use crate::output::{Output, json, plural, print, terminal_width};
use crate::style::{ALLOWED, BOLD, REFUSED};
use crate::table::Table;
use crate::trouble::Trouble;

/// Which policies are in force on which nodes, and what lags
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits 1 if anything lags: a policy that a node does not hold as the API server \
                        has it, or an agent that cannot be asked on a node where policies select \
                        pods."
)]
pub(crate) struct Status {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    agents: AgentArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing lags.
    enforced: bool,
    /// How many NetworkPolicies there are, and how many select a pod that runs on a node.
    policies: usize,
    #[serde(rename = "selectingPolicies")]
    selecting: usize,
    nodes: Vec<NodeReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    node: String,
    /// The pod of its agent, or its socket; `null` if it has none.
    agent: Option<String>,
    /// How many policies should be in force there.
    policies: usize,
    /// How many of them are.
    enforced: usize,
    /// How many of these are in audit: they are reported, and not refused.
    audited: usize,
    /// What is not as it should be.
    lags: Vec<Lag>,
}

#[derive(Debug, Serialize)]
struct Lag {
    /// `namespace/name`; `null` where it is about the whole node.
    policy: Option<String>,
    why: String,
}

impl Status {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let report = self.report()?;
        match self.output {
            Output::Json => json(&report)?,
            Output::Table => print(&report.text())?,
        }
        Ok(if report.enforced { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn report(&self) -> Result<Report, Trouble> {
        let api = self.agents.live.access().agents()?;
        let reach = self.agents.reach()?;
        let mut modes: BTreeMap<String, Mode> = BTreeMap::new();
        for object in api.list(Kind::Namespace, None)? {
            if let Known::Namespace(name, _, Some(mode)) = object.body {
                modes.insert(name, mode);
            }
        }
        let policies = api.list(Kind::Policy, None)?;
        let mut pods: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
        for object in api.list(Kind::Pod, None)? {
            if let Known::Pod(pod) = object.body {
                pods.entry(pod.namespace.clone()).or_default().push(pod);
            }
        }
        let mut nodes: BTreeSet<String> = BTreeSet::new();
        nodes.extend(api.list(Kind::Node, None)?.iter().map(|node| node.body.name().1.to_owned()));
        let wanted = policies.iter().filter_map(|policy| {
            let namespace = policy.body.name().0;
            let pods = pods.get(namespace).into_iter().flatten();
            Wanted::of(policy, modes.get(namespace).copied(), pods)
        });
        let wanted: Vec<Wanted> = wanted.collect();
        nodes.extend(wanted.iter().flat_map(|policy| policy.nodes.keys().cloned()));
        // After the lists: what an agent says now is not older than these.
        let asked = each(reach.agents()?, |agent| {
            let line = reach.connect(&agent);
            let holding = line.and_then(|mut line| holding(&mut line, None));
            (agent, holding)
        });

        let mut reports: BTreeMap<String, NodeReport> = BTreeMap::new();
        for node in nodes {
            reports.insert(node.clone(), NodeReport::of(node, &wanted));
        }
        for (agent, answer) in asked {
            let name = match &agent {
                Agent::Socket(path) => path.display().to_string(),
                Agent::Pod(pod) => format!("{}/{}", pod.namespace, pod.name),
            };
            let node = match (&answer, &agent) {
                (Ok(holding), _) => holding.node.clone(),
                (Err(_), Agent::Pod(pod)) => pod.node.clone(),
                // Nobody knows of which node it would be.
                (Err(_), Agent::Socket(_)) => name.clone(),
            };
            let report = reports
                .entry(node.clone())
                .or_insert_with(|| NodeReport::of(node.clone(), &wanted));
            report.agent = Some(name);
            match answer {
                Ok(holding) => report.hold(&wanted, &holding.policies),
                Err(why) => report.lags = vec![Lag { policy: None, why }],
            }
        }
        let nodes: Vec<NodeReport> = reports.into_values().collect();
        Ok(Report {
            enforced: nodes.iter().all(|node| node.lags.is_empty()),
            policies: wanted.len(),
            selecting: wanted.iter().filter(|policy| !policy.nodes.is_empty()).count(),
            nodes,
        })
    }
}

impl NodeReport {
    /// A node of which no agent has said anything. Without policies for it, nobody misses one.
    fn of(node: String, wanted: &[Wanted]) -> NodeReport {
        let policies = wanted.iter().filter(|policy| policy.nodes.contains_key(&node)).count();
        let why = "no agent runs there".to_owned();
        let lags = if policies > 0 { vec![Lag { policy: None, why }] } else { Vec::new() };
        NodeReport { node, agent: None, policies, enforced: 0, audited: 0, lags }
    }

    /// Its agent says that its kernel holds these policies.
    fn hold(&mut self, wanted: &[Wanted], held: &[Held]) {
        let by_name: BTreeMap<(&str, &str), &Held> =
            held.iter().map(|held| ((&*held.namespace, &*held.name), held)).collect();
        (self.lags, self.enforced, self.audited) = (Vec::new(), 0, 0);
        for policy in wanted.iter().filter(|policy| policy.nodes.contains_key(&self.node)) {
            let held = by_name.get(&(&*policy.namespace, &*policy.name)).copied();
            match policy.lag(&self.node, held) {
                Some(why) => {
                    let name = format!("{}/{}", policy.namespace, policy.name);
                    self.lags.push(Lag { policy: Some(name), why });
                }
                None => {
                    self.enforced += 1;
                    self.audited += usize::from(policy.mode == Mode::Audit);
                }
            }
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let row = |node: &NodeReport| {
            let NodeReport { node, agent, policies, enforced, audited, lags } = node;
            let mut count = format!("{enforced}/{policies}");
            if *audited > 0 {
                count.push_str(&format!(" ({audited} in audit)"));
            }
            let lags = lags.iter().map(|Lag { policy, why }| match policy {
                Some(policy) => format!("{policy} {why}"),
                None => why.clone(),
            });
            let agent = agent.clone().unwrap_or_else(|| "-".to_owned());
            vec![vec![node.clone()], vec![agent], vec![count], lags.collect()]
        };
        let headers = &["NODE", "AGENT", "POLICIES IN FORCE", "LAGS"];
        let mut table = Table { headers, rows: self.nodes.iter().map(row).collect() };
        table.shorten(20);
        let mut text = table.text(terminal_width());
        let lagging = self.nodes.iter().filter(|node| !node.lags.is_empty()).count();
        let nodes = plural(self.nodes.len(), "node");
        let policies = match self.selecting {
            1 => "1 policy that selects pods".to_owned(),
            count => format!("{count} policies that select pods"),
        };
        text.push_str(&match lagging {
            0 => format!("{ALLOWED}in force{ALLOWED:#}: {policies}, on {nodes}\n"),
            lagging => format!("{REFUSED}{BOLD}{lagging} of {nodes} lag{BOLD:#}{REFUSED:#}\n"),
        });
        text
    }
}
