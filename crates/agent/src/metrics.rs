//! What the agent counts, and how Prometheus reads it (text format 0.0.4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use portcullis_cni::flow::Verdict;
use portcullis_cni::protocol::Held;
use portcullis_dataplane::{Ended, Judged, Report, Tally};
use portcullis_kube::live::Kind;

use crate::desired::{PolicyName, RulePlace};

/// The most policies whose hits are told one by one.
const MOST_POLICIES: usize = 1000;
/// The same for rules.
const MOST_RULES: usize = 2000;
/// The upper bounds of the buckets of a histogram, in seconds.
const BOUNDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// A step takes less; one that takes so long hangs.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// What is known of the agent's work.
#[derive(Debug, Default)]
pub struct Metrics {
    /// When the agent last did anything.
    pub(crate) alive: Option<Instant>,
    pub(crate) node_is_known: bool,
    /// Why packets between pods of the node do not meet the rules, if so.
    pub(crate) unseen: Option<String>,
    pub(crate) policies: usize,
    pub(crate) pods: usize,
    pub(crate) unreadable_policies: usize,
    pub(crate) drift_repairs: u64,
    pub(crate) apply_errors: u64,
    connections_cut: u64,
    connections_forgotten: u64,
    cut: Histogram,
    pub(crate) endpoints: usize,
    pub(crate) identities: usize,
    programmed_policies: usize,
    elements: u64,
    bytes: u64,
    apply: Histogram,
    enforced: Histogram,
    watch_errors: BTreeMap<Kind, u64>,
    hits: BTreeMap<PolicyName, u64>,
    pub(crate) rule_hits: BTreeMap<RulePlace, u64>,
    pub(crate) ended: Ended,
    pub(crate) false_sources: Tally,
    pub(crate) allowed: Tally,
    pub(crate) flows: BTreeMap<Verdict, u64>,
    pub(crate) flows_repeated: u64,
    pub(crate) flows_unwanted: u64,
    pub(crate) flows_lost: u64,
    /// The policies that the kernel holds, by namespace and name.
    pub(crate) held: Vec<Held>,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    /// Whether the agent still works. It does that also where nothing can be done.
    pub fn is_alive(&self) -> bool {
        self.alive.is_none_or(|alive| alive.elapsed() < DEAD_AFTER)
    }

    /// Whether what the node must enforce is in force; otherwise why not.
    pub fn readiness(&self) -> Result<(), &str> {
        match (self.apply.count, self.node_is_known, &self.unseen) {
            (0, ..) => Err("nothing has been enforced yet"),
            (_, false, _) => Err("the cluster has no node of this name"),
            (_, _, Some(unseen)) => Err(unseen),
            _ => Ok(()),
        }
    }

    /// How many states have been put in force.
    pub fn applies(&self) -> u64 {
        self.apply.count
    }

    /// The seconds from the arrival of events to the kernel's word that they are in force, in all.
    pub fn event_to_enforced_seconds(&self) -> f64 {
        self.enforced.sum
    }

    /// The elements and bytes that were sent to the kernel, in all.
    pub fn sent(&self) -> (u64, u64) {
        (self.elements, self.bytes)
    }

    /// How often what somebody else had changed was put back.
    pub fn drift_repairs(&self) -> u64 {
        self.drift_repairs
    }

    /// How often the API server could not be heard.
    pub fn watch_errors(&self) -> u64 {
        self.watch_errors.values().sum()
    }

    /// How many policies cannot be understood.
    pub fn unreadable_policies(&self) -> usize {
        self.unreadable_policies
    }

    pub(crate) fn watch_failed(&mut self, kind: Kind) {
        *self.watch_errors.entry(kind).or_default() += 1;
    }

    pub(crate) fn applied(&mut self, report: &Report) {
        self.apply.observe(report.elapsed);
        self.elements += report.elements as u64;
        self.bytes += report.bytes as u64;
    }

    pub(crate) fn enforced(&mut self, elapsed: Duration) {
        self.enforced.observe(elapsed);
    }

    pub(crate) fn judged(&mut self, judged: &Judged) {
        self.connections_cut += judged.newly_cut as u64;
        self.connections_forgotten += judged.forgotten as u64;
        self.cut.observe(judged.elapsed);
    }

    /// These are the rules whose hits are told from now on, and so are their policies.
    pub(crate) fn programmed<'a>(
        &mut self,
        count: usize,
        rules: impl Iterator<Item = &'a RulePlace>,
    ) {
        self.programmed_policies = count;
        // What is no longer in force must not be told for ever.
        let rules: BTreeSet<_> = rules.collect();
        let policies: BTreeSet<_> = rules.iter().map(|place| &place.policy).collect();
        self.hits.retain(|policy, _| policies.contains(policy));
        self.rule_hits.retain(|rule, _| rules.contains(rule));
        for policy in policies {
            self.hits.entry(policy.clone()).or_default();
        }
        for rule in rules {
            self.rule_hits.entry(rule.clone()).or_default();
        }
    }

    pub(crate) fn hit(&mut self, new: BTreeMap<RulePlace, u64>) {
        for (rule, packets) in new {
            *self.hits.entry(rule.policy.clone()).or_default() += packets;
            *self.rule_hits.entry(rule).or_default() += packets;
        }
    }

    fn told_of_held(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().take(MOST_POLICIES)
    }

    /// All of it, as Prometheus scrapes it.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        page.one("policies", "gauge", "NetworkPolicies of the cluster.", self.policies);
        let help = "NetworkPolicies that select a pod of this node.";
        page.one("programmed_policies", "gauge", help, self.programmed_policies);
        let help = "NetworkPolicies that cannot be understood: they isolate, and what cannot be \
                    read of them allows nothing.";
        page.one("unreadable_policies", "gauge", help, self.unreadable_policies);
        page.one("pods", "gauge", "Pods of the cluster.", self.pods);
        let help = "Addresses of pods of this node that are programmed.";
        page.one("endpoints", "gauge", help, self.endpoints);
        let help =
            "Classes of pods that policies can tell apart: by namespace, labels, named ports.";
        page.one("identities", "gauge", help, self.identities);
        let help = "From a new state to the kernel's word that it is in force.";
        page.histogram("apply_duration_seconds", help, &self.apply);
        let help = "From the arrival of an event to the kernel's word that it is in force.";
        page.histogram("event_to_enforced_seconds", help, &self.enforced);
        let help = "Elements of sets that were sent to the kernel.";
        page.one("sent_elements_total", "counter", help, self.elements);
        let help = "Bytes that were sent to the kernel.";
        page.one("sent_bytes_total", "counter", help, self.bytes);
        page.one("apply_errors_total", "counter", "States that were refused.", self.apply_errors);
        let help = "Repairs of what somebody else had changed.";
        page.one("drift_repairs_total", "counter", help, self.drift_repairs);
        let help = "Connections that were open and are no longer allowed.";
        page.one("connections_cut_total", "counter", help, self.connections_cut);
        let help = "Connections that were open when their address went to another pod.";
        page.one("connections_forgotten_total", "counter", help, self.connections_forgotten);
        let help = "From a state in force to the kernel's word that what it does not allow is cut.";
        page.histogram("cut_duration_seconds", help, &self.cut);
        page.head("watch_errors_total", "counter", "Times that a watch broke.");
        for kind in Kind::ALL {
            let errors = self.watch_errors.get(&kind).copied().unwrap_or_default();
            page.line("watch_errors_total", &format!("resource=\"{kind}\""), errors);
        }
        let help = "metadata.generation of a NetworkPolicy, as the kernel holds it.";
        page.head("policy_generation", "gauge", help);
        for Held { namespace, name, uid, generation, mode, .. } in self.told_of_held() {
            let labels = format!(
                "namespace=\"{namespace}\",policy=\"{name}\",uid=\"{uid}\",mode=\"{mode}\""
            );
            page.line("policy_generation", &labels, generation);
        }
        page.head("policy_pods", "gauge", "Pods of this node that a NetworkPolicy selects.");
        for Held { namespace, name, pods, .. } in self.told_of_held() {
            let labels = format!("namespace=\"{namespace}\",policy=\"{name}\"");
            page.line("policy_pods", &labels, pods);
        }
        let help = "Connections that a policy let pass at its pods of this node. One that several \
                    rules allow can count for each of them.";
        page.head("policy_hits_total", "counter", help);
        for (policy, packets) in self.hits.iter().take(MOST_POLICIES) {
            // Names of objects have no character that would have to be escaped.
            let PolicyName { namespace, name, direction } = policy;
            let labels =
                format!("namespace=\"{namespace}\",policy=\"{name}\",direction=\"{direction}\"");
            page.line("policy_hits_total", &labels, *packets);
        }
        let help = "Policies whose hits are not told, because there are too many.";
        let untold = self.hits.len().saturating_sub(MOST_POLICIES);
        page.one("policy_hits_untold", "gauge", help, untold);
        let help = "The same by rule: the index in the section of the direction.";
        page.head("rule_hits_total", "counter", help);
        for (RulePlace { policy, rule }, packets) in self.rule_hits.iter().take(MOST_RULES) {
            let PolicyName { namespace, name, direction } = policy;
            let labels = format!(
                "namespace=\"{namespace}\",policy=\"{name}\",direction=\"{direction}\",rule=\"{rule}\""
            );
            page.line("rule_hits_total", &labels, *packets);
        }
        let help = "Rules whose hits are not told, because there are too many.";
        let untold = self.rule_hits.len().saturating_sub(MOST_RULES);
        page.one("rule_hits_untold", "gauge", help, untold);
        self.render_flows(&mut page);
        page.0
    }
}

impl Metrics {
    fn render_flows(&self, page: &mut Page) {
        let Ended { refused: [egress, ingress], audited } = self.ended;
        let refused = [("egress", egress), ("ingress", ingress), ("source", self.false_sources)];
        let help = "Packets that were refused: by the policies of their source or destination, or \
                    for a false source.";
        page.head("refused_packets_total", "counter", help);
        for (by, tally) in refused {
            page.line("refused_packets_total", &format!("by=\"{by}\""), tally.packets);
        }
        let help = "Those of them that were not logged, because they were too many.";
        page.head("refused_unlogged_packets_total", "counter", help);
        for (by, Tally { packets, told }) in refused {
            let unlogged = packets.saturating_sub(told);
            page.line("refused_unlogged_packets_total", &format!("by=\"{by}\""), unlogged);
        }
        let audited = ["egress", "ingress"].into_iter().zip(audited);
        let help = "Packets that passed because what refuses them is only audited.";
        page.head("audited_packets_total", "counter", help);
        for (by, tally) in audited.clone() {
            page.line("audited_packets_total", &format!("by=\"{by}\""), tally.packets);
        }
        let help = "Those of them that were not logged, because they were too many.";
        page.head("audited_unlogged_packets_total", "counter", help);
        for (by, Tally { packets, told }) in audited {
            let unlogged = packets.saturating_sub(told);
            page.line("audited_unlogged_packets_total", &format!("by=\"{by}\""), unlogged);
        }
        let help =
            "Allowed packets that were to be logged and were not, because they were too many.";
        let unlogged = self.allowed.packets.saturating_sub(self.allowed.told);
        page.one("allowed_unlogged_packets_total", "counter", help, unlogged);
        page.head("flows_total", "counter", "Connections that were logged.");
        for verdict in [Verdict::Allowed, Verdict::Refused, Verdict::Audited, Verdict::Cut] {
            let flows = self.flows.get(&verdict).copied().unwrap_or_default();
            page.line("flows_total", &format!("verdict=\"{}\"", verdict.as_str()), flows);
        }
        let help = "Packets of connections that were logged already.";
        page.one("flows_repeated_packets_total", "counter", help, self.flows_repeated);
        let help = "Packets of pods whose namespace wants no log.";
        page.one("flows_unwanted_packets_total", "counter", help, self.flows_unwanted);
        let help = "Packets that the agent was too slow to log.";
        page.one("flows_lost_packets_total", "counter", help, self.flows_lost);
    }
}

impl Histogram {
    fn observe(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// Lines of text. Writing to a String does not fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP portcullis_{name} {help}");
        let _ = writeln!(self.0, "# TYPE portcullis_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "portcullis_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (count, bound) in histogram.buckets.iter().zip(BOUNDS) {
            self.line(&bucket, &format!("le=\"{bound}\""), count);
        }
        self.line(&bucket, "le=\"+Inf\"", histogram.count);
        self.line(&format!("{name}_sum"), "", histogram.sum);
        self.line(&format!("{name}_count"), "", histogram.count);
    }
}

#[cfg(test)]
mod tests {
    use portcullis_core::model::Direction;

    use super::*;

    #[test]
    fn the_page_is_one_that_prometheus_reads() {
        let mut metrics = Metrics::default();
        let elapsed = Duration::from_millis(4);
        metrics.applied(&Report { elapsed, ..Report::default() });
        metrics.watch_failed(Kind::Pod);
        metrics.ended.refused[1] = Tally { packets: 5, told: 3 };
        let policy = |name: &str| PolicyName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            direction: Direction::Ingress,
        };
        let rule = |name: &str, rule| RulePlace { policy: policy(name), rule };
        metrics.hit((0..1200).map(|n| (rule(&format!("p{n:04}"), 0), n)).collect());
        metrics.hit((0..1200).map(|n| (rule(&format!("p{n:04}"), 1), 0)).collect());
        let page = metrics.render();
        for wanted in [
            "# TYPE portcullis_apply_duration_seconds histogram",
            "portcullis_apply_duration_seconds_bucket{le=\"0.0025\"} 0",
            "portcullis_apply_duration_seconds_bucket{le=\"0.005\"} 1",
            "portcullis_apply_duration_seconds_bucket{le=\"+Inf\"} 1",
            "portcullis_apply_duration_seconds_sum 0.004",
            "portcullis_watch_errors_total{resource=\"pods\"} 1",
            "portcullis_watch_errors_total{resource=\"nodes\"} 0",
            "portcullis_policy_hits_total{namespace=\"shop\",policy=\"p0007\",direction=\"ingress\"} 7",
            "portcullis_policy_hits_untold 200",
            "portcullis_rule_hits_total{namespace=\"shop\",policy=\"p0007\",direction=\"ingress\",rule=\"0\"} 7",
            "portcullis_rule_hits_untold 400",
            "portcullis_refused_packets_total{by=\"ingress\"} 5",
            "portcullis_refused_unlogged_packets_total{by=\"ingress\"} 2",
        ] {
            assert!(page.lines().any(|line| line == wanted), "{wanted} is not in\n{page}");
        }
        let told = page.lines().filter(|line| line.starts_with("portcullis_policy_hits_total"));
        assert_eq!(told.count(), MOST_POLICIES);
    }
}
