//! Whether a test holds, read off the classes of the compiled program.

use std::collections::BTreeMap;

use portcullis_core::model::Direction;
use portcullis_core::net::{Family, Traffic};
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Entry, Path};
use portcullis_core::reach::{Allowed, Unit};
use portcullis_kube::{Diagnostic, Reason, closest};

use super::file::{Assertion, Because, Ends, Test};
use super::ports::{Claim, Ports};
use super::world::{Counts, Open, Side, World};
use crate::ends::Flow;
use crate::groups::Members;
use crate::why;

/// A way in which a test does not hold.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) message: String,
    /// A connection that shows it.
    pub(super) flow: Option<Flow>,
}

/// A test in terms of a cluster: what is to hold between which sets.
pub(super) struct Question {
    pub(super) claims: Vec<Expectation>,
    /// The policy that is to be the reason, as an index.
    reason: Option<Expected>,
}

/// What is to hold between two sides.
pub(super) struct Expectation {
    pub(super) from: Vec<Side>,
    pub(super) to: Vec<Side>,
    pub(super) want: Want,
    /// Whether each item of it has to be about some connection.
    all_tested: bool,
}

/// What is to be allowed of what is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    All,
    Nothing,
    Something,
}

struct Expected {
    policy: u32,
    direction: Option<Direction>,
    rule: Option<u32>,
    text: String,
}

/// A cell of the table of units that is not as it should be.
struct Wrong {
    from: usize,
    to: usize,
    family: Option<Family>,
    claim: Claim,
    how: How,
    flow: (End, End),
}

/// How a cell is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// It is not what is said.
    Otherwise,
    /// It is, but for another reason.
    Reason,
    /// That depends on a fact that is missing.
    Undetermined,
}

impl World<'_> {
    /// How a test does not hold: nothing where it does. An error where it cannot be asked, or
    /// tests nothing.
    pub(super) fn judge(&mut self, test: &Test) -> Result<Vec<Problem>, Diagnostic> {
        if let Assertion::Isolated { pods, directions } = &test.assertion {
            return self.isolated(test, pods, directions);
        }
        let question = self.question(test)?;
        let mut problems = Vec::new();
        let mut tested = false;
        for expectation in &question.claims {
            tested |=
                self.expectation(test, expectation, question.reason.as_ref(), &mut problems)?;
        }
        if !tested {
            return Err(test.at.error(Reason::Test, NOTHING));
        }
        Ok(problems)
    }

    /// The connections that a test is about, and what is to hold for them.
    pub(super) fn question(&self, test: &Test) -> Result<Question, Diagnostic> {
        let reason = test.because.as_ref().map(|because| self.reason(because)).transpose()?;
        let only = |mut sides: Vec<Side>| {
            for side in &mut sides {
                side.set = std::mem::take(&mut side.set).only(test.family);
            }
            sides
        };
        // What is never to be has to be refused wherever a pod may turn out to be.
        let counts = match test.assertion {
            Assertion::Deny { .. } => Counts::Perhaps,
            _ => Counts::Surely,
        };
        let sides = |ends: &Ends| self.sides(ends, &test.at, counts).map(&only);
        let targets =
            |ends: &Ends, port: &Ports| self.targets(ends, port, &test.at, counts).map(&only);
        let plain = |from, to, want| Expectation { from, to, want, all_tested: true };
        // Nobody is meant to need each port that there is: who may open one is let in.
        let listed = |port: &Ports| if port.all_but { Want::Something } else { Want::All };
        let others = |sides: &[Side]| {
            let set = self.others(sides.iter().map(|side| &side.set)).only(test.family);
            Side { place: None, set, claim: Claim::all() }
        };
        let exact = |ends: &Ends, what: &str| match ends {
            Ends::All => Err(test
                .at
                .error(Reason::Test, &format!("{what}: all leaves nobody out: use allow"))),
            Ends::AllBut(_) | Ends::These(_) => Ok(()),
        };
        let claims = match &test.assertion {
            Assertion::Allow { from, to, port } => {
                vec![plain(sides(from)?, targets(to, port)?, Want::All)]
            }
            Assertion::Deny { from, to, port } => {
                vec![plain(sides(from)?, targets(to, port)?, Want::Nothing)]
            }
            Assertion::Reachable { to, port, only_from } => {
                exact(only_from, "onlyFrom")?;
                let from = sides(only_from)?;
                let rest = Expectation {
                    from: vec![others(&from)],
                    to: targets(to, port)?,
                    want: Want::Nothing,
                    all_tested: false,
                };
                vec![plain(from, targets(to, port)?, listed(port)), rest]
            }
            Assertion::Reaches { from, port, only_to } => {
                exact(only_to, "onlyTo")?;
                let claim = port
                    .claim(None)
                    .map_err(|why| test.at.error(Reason::Test, &why.to_string()))?;
                let mut to = sides(only_to)?;
                to.iter_mut().for_each(|side| side.claim = claim.clone());
                let rest = Expectation {
                    from: sides(from)?,
                    to: vec![Side { claim, ..others(&to) }],
                    want: Want::Nothing,
                    all_tested: false,
                };
                vec![plain(sides(from)?, to, listed(port)), rest]
            }
            Assertion::Isolated { .. } => Vec::new(),
        };
        Ok(Question { claims, reason })
    }

    fn reason(&self, because: &Because) -> Result<Expected, Diagnostic> {
        let policies = &self.cluster.policies;
        let full = match because.policy.contains('/') {
            true => because.policy.clone(),
            false => format!("{}/{}", self.namespace, because.policy),
        };
        let names: Vec<String> =
            policies.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
        let Some(index) = names.iter().position(|name| *name == full) else {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let hint = match closest(&full, &known) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None if known.is_empty() => "the input has no policies".to_owned(),
                None => {
                    let few = known.iter().take(5).copied().collect::<Vec<_>>().join(", ");
                    format!("there is {few}{}", if known.len() > 5 { ", …" } else { "" })
                }
            };
            return Err(because
                .at
                .error(Reason::Test, &format!("there is no policy {full:?}: {hint}")));
        };
        if let Some(direction) = because.direction {
            let Some(rules) = policies[index].rules(direction) else {
                let message = format!("{full} does not isolate for {direction}");
                return Err(because.at.error(Reason::Test, &message));
            };
            if because.rule.is_some_and(|rule| rule as usize >= rules.len()) {
                let count = crate::output::plural(rules.len(), &format!("{direction} rule"));
                let message = format!("{full} has {count}, counted from 0");
                return Err(because.at.error(Reason::Test, &message));
            }
        }
        let (direction, rule) = (because.direction, because.rule);
        let text = Because { policy: full, direction, rule, at: because.at.clone() }.to_string();
        Ok(Expected { policy: index as u32, direction, rule, text })
    }

    /// Judges every cell between the units of two sides. Whether there was any connection to judge.
    fn expectation(
        &mut self,
        test: &Test,
        expectation: &Expectation,
        reason: Option<&Expected>,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, Diagnostic> {
        let Expectation { from, to, want, all_tested } = expectation;
        let (sources, source_of) = self.split(from);
        let (destinations, destination_of) = self.split(to);
        let mut tested_from = vec![false; from.len()];
        let mut tested_to = vec![false; to.len()];
        let mut wrongs = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let row = self.reach.unit_row(&destinations, source);
            for (j, allowed) in row.into_iter().enumerate() {
                let destination = &destinations[j];
                if source.pods.is_empty() && destination.pods.is_empty() {
                    continue;
                }
                let claim = &to[destination_of[j]].claim;
                let (tested_from, tested_to) =
                    (&mut tested_from[source_of[i]], &mut tested_to[destination_of[j]]);
                // Of all that there is, what has no family in common is nothing to speak of.
                let rest = from[source_of[i]].set.rest || to[destination_of[j]].set.rest;
                if rest && matches!(allowed, Allowed::NoFamily(_)) {
                    continue;
                }
                for Open { family, open, unknown } in
                    self.open(source, destination, allowed, (!rest).then_some(claim))
                {
                    let wrongs_here = Self::wrong([&open, &unknown], claim, *want);
                    let mut wrongs_here: Vec<(Claim, How)> =
                        wrongs_here.into_iter().filter(|(claim, _)| !claim.is_nothing()).collect();
                    let is_reason = |reason: &Expected| {
                        let (ends, claims) = ([source, destination], [claim, &open]);
                        self.is_reason(reason, ends, family, claims, *want)
                    };
                    if wrongs_here.is_empty() && !reason.is_none_or(is_reason) {
                        wrongs_here.push((claim.clone(), How::Reason));
                    }
                    // Where all is well, one connection of an item is enough to know of.
                    if wrongs_here.is_empty() && *tested_from && *tested_to {
                        continue;
                    }
                    let Some(flow) = self.example(source, destination, family) else { continue };
                    (*tested_from, *tested_to) = (true, true);
                    for (claim, how) in wrongs_here {
                        wrongs.push(Wrong { from: i, to: j, family, claim, how, flow });
                    }
                }
            }
        }
        for (i, side) in from.iter().enumerate() {
            for (j, target) in to.iter().enumerate() {
                if side.set.rest || target.set.rest {
                    continue;
                }
                let own = self.own_node(&side.set, &target.set);
                if own.is_some() {
                    (tested_from[i], tested_to[j]) = (true, true);
                }
                let perhaps = || self.perhaps_own_node(side, target);
                if *want == Want::Nothing
                    && let Some((source, destination)) = own.or_else(perhaps)
                {
                    let message = match own {
                        Some(_) => "a pod and the node it runs on always reach each other",
                        None => "this may be a pod and the node it runs on: they reach each other",
                    };
                    let traffic = self.traffic(&target.claim, destination);
                    let flow = Some(Flow { source, destination, traffic });
                    problems.push(Problem { message: message.to_owned(), flow });
                }
            }
        }
        if *all_tested {
            let untested = |sides: &[Side], tested: &[bool]| {
                let mut by_place: Vec<(&Side, bool)> = Vec::new();
                for (side, tested) in sides.iter().zip(tested) {
                    let same = |other: &Side| match (&other.place, &side.place) {
                        (Some(a), Some(b)) => a.location == b.location,
                        _ => false,
                    };
                    match by_place.iter_mut().find(|(other, _)| same(other)) {
                        Some((_, known)) => *known |= *tested,
                        None => by_place.push((side, *tested)),
                    }
                }
                // What selects nothing was allowed to.
                let empty = |side: &Side| side.set.is_empty() && test.family.is_none();
                let mut nothing = by_place.into_iter().filter(|(s, tested)| !tested && !empty(s));
                nothing.next().and_then(|(side, _)| side.place.clone())
            };
            let place = untested(from, &tested_from).or_else(|| untested(to, &tested_to));
            if let Some(place) = place {
                return Err(place.error(Reason::Test, NOTHING));
            }
        }
        self.tell(&wrongs, &sources, &destinations, *want, reason, problems);
        let none = test.family.is_none() && to.iter().chain(from).any(|side| side.set.is_empty());
        Ok(tested_from.contains(&true) || none)
    }

    /// The units of all items, and the item that each is of.
    fn split(&mut self, sides: &[Side]) -> (Vec<Unit>, Vec<usize>) {
        let (mut units, mut of) = (Vec::new(), Vec::new());
        for (i, side) in sides.iter().enumerate() {
            let parts = self.parts(&side.set);
            of.extend(parts.iter().map(|_| i));
            units.extend(parts);
        }
        (units, of)
    }

    /// What is not as it should be of what may be opened. This is where verdicts become the answer
    /// to a test.
    fn wrong([open, unknown]: [&Claim; 2], claim: &Claim, want: Want) -> [(Claim, How); 2] {
        let (unknown, open) = (claim.and(unknown), claim.and(open));
        match want {
            Want::All => {
                let refused = claim.without(&open).without(&unknown);
                [(refused, How::Otherwise), (unknown, How::Undetermined)]
            }
            Want::Nothing => [(open, How::Otherwise), (unknown, How::Undetermined)],
            Want::Something if !open.is_nothing() => {
                [(Claim::NOTHING, How::Otherwise), (Claim::NOTHING, How::Undetermined)]
            }
            Want::Something if !unknown.is_nothing() => {
                [(Claim::NOTHING, How::Otherwise), (unknown, How::Undetermined)]
            }
            Want::Something => [(claim.clone(), How::Otherwise), (unknown, How::Undetermined)],
        }
    }

    /// Whether a policy, or a rule of it, surely allows or refuses all of a claim between two
    /// units, of which what is open is known.
    fn is_reason(
        &self,
        reason: &Expected,
        [from, to]: [&Unit; 2],
        family: Option<Family>,
        [claim, open]: [&Claim; 2],
        want: Want,
    ) -> bool {
        let mut families = self.families_between(from, to);
        families.retain(|here| family.is_none_or(|family| family == *here));
        let by_direction = |family: Family, path: &Path, direction| {
            let at = family as usize;
            let [from, to] = [from.classes[at]?, to.classes[at]?];
            let (subject, remote) = match direction {
                Direction::Egress => (from, to),
                Direction::Ingress => (to, from),
            };
            let rules = self.reach.isolation(subject, direction)?;
            let mut entries = self.reach.entries(subject, direction, remote, family);
            if !rules.policies.contains(&reason.policy) {
                return None;
            }
            let all = |entries: &[Entry]| Claim::of(&PortSet::of(entries.iter().map(|e| e.ports)));
            if want == Want::Nothing {
                return Some(claim.and(&all(&entries)).is_nothing());
            }
            let others = entries.extract_if(.., |Entry { origin, .. }| {
                origin.policy != reason.policy
                    || reason.rule.is_some_and(|rule| rule != origin.rule)
            });
            let others: Vec<Entry> = others.collect();
            // What is open, and by nobody else, is open by these, whatever is not known.
            let alone = all(&entries).without(&all(&others)).and(open);
            let (_, remote) = path.subject_and_remote(direction);
            entries.retain(|entry| {
                let traffic = entry
                    .ports
                    .map_or(Traffic::Other, |ports| Traffic::Port(ports.protocol, ports.first));
                let mut sure = self.program.allowing(rules, remote.identity, traffic);
                sure.any(|sure| sure == *entry)
            });
            Some(claim.without(&alone.or(&all(&entries))).is_nothing())
        };
        let is_of = |family: Family| {
            let (source, destination) = self.example(from, to, Some(family))?;
            let path = self.paths(source, destination, Some(family)).next()?;
            let mut directions = Direction::ALL.into_iter();
            directions.find(|direction| {
                reason.direction.is_none_or(|asked| asked == *direction)
                    && by_direction(family, &path, *direction) == Some(true)
            })
        };
        !families.is_empty() && families.into_iter().all(|family| is_of(family).is_some())
    }

    /// Tells what is wrong in as few words as say it exactly.
    fn tell(
        &self,
        wrongs: &[Wrong],
        sources: &[Unit],
        destinations: &[Unit],
        want: Want,
        reason: Option<&Expected>,
        problems: &mut Vec<Problem>,
    ) {
        type Key<'k> = (How, Option<Family>, &'k Claim);
        let mut rows: BTreeMap<(usize, Key<'_>), Vec<(usize, &Wrong)>> = BTreeMap::new();
        for wrong in wrongs {
            let key = (wrong.to, (wrong.how, wrong.family, &wrong.claim));
            rows.entry(key).or_default().push((wrong.from, wrong));
        }
        type Products<'k> = BTreeMap<(Vec<usize>, Key<'k>), (Vec<usize>, &'k Wrong)>;
        let mut products: Products<'_> = BTreeMap::new();
        for ((to, key), from) in rows {
            let first = from[0].1;
            let from = from.into_iter().map(|(from, _)| from).collect();
            products.entry((from, key)).or_insert((Vec::new(), first)).0.push(to);
        }
        for ((from, (how, family, claim)), (to, wrong)) in products {
            let describe = |units: &[Unit], of: &[usize]| {
                let members: Vec<Members> = of
                    .iter()
                    .map(|i| Members {
                        pods: units[*i].pods.clone(),
                        addresses: units[*i].addresses.clone(),
                    })
                    .collect();
                let mut all = Members::of(members.iter().map(Members::lists));
                all.pods.dedup();
                all.addresses.dedup();
                self.groups.describe(&all).join(", ")
            };
            let (from, to) = (describe(sources, &from), describe(destinations, &to));
            let on = family.map_or(String::new(), |family| format!(" over {family}"));
            let policy = reason.map_or("", |reason| &reason.text);
            let message = match (how, want) {
                (How::Reason, Want::Nothing) => {
                    format!("{from} -> {to} is refused, and not by {policy} (all of {claim}{on})")
                }
                (How::Reason, _) => {
                    format!("{from} -> {to} is allowed, and not by {policy} (all of {claim}{on})")
                }
                (How::Otherwise, Want::Nothing) => {
                    format!("{from} -> {to} is allowed on {claim}{on}")
                }
                (How::Otherwise, _) => format!("{from} -> {to} is refused on {claim}{on}"),
                (How::Undetermined, _) => {
                    format!("{from} -> {to} is undetermined on {claim}{on}")
                }
            };
            let (source, destination) = wrong.flow;
            let traffic = self.traffic(claim, destination);
            let flow = Flow { source, destination, traffic };
            problems.push(Problem { message, flow: Some(flow) });
        }
    }

    fn isolated(
        &self,
        test: &Test,
        pods: &Ends,
        directions: &[Direction],
    ) -> Result<Vec<Problem>, Diagnostic> {
        let reason = test.because.as_ref().map(|because| self.reason(because)).transpose()?;
        let mut problems = Vec::new();
        for side in self.sides(pods, &test.at, Counts::Surely)? {
            let rest = side.set.rest;
            let on_host = |pod: &usize| self.cluster.pods[*pod].host_network;
            let mut pods: Vec<usize> = side.set.pods.keys().copied().collect();
            pods.retain(|pod| !rest || !on_host(pod));
            if pods.is_empty() && !(side.set.is_empty() && side.place.is_some()) {
                let place = side.place.as_ref().unwrap_or(&test.at);
                return Err(place.error(Reason::Test, "no pod: policies isolate nothing else"));
            }
            for direction in directions {
                let isolating = |pod: &usize| {
                    let endpoints = self.program.endpoints(End::Pod(*pod));
                    let endpoint = endpoints.into_iter().flatten().next()?;
                    self.program.isolation(&endpoint, *direction)
                };
                let (isolated, open): (Vec<usize>, Vec<usize>) =
                    pods.iter().partition(|pod| isolating(pod).is_some());
                let (host, open): (Vec<usize>, Vec<usize>) = open.into_iter().partition(on_host);
                let other = isolated.into_iter().filter(|pod| {
                    let by = isolating(pod).map(|rules| &rules.policies);
                    reason.as_ref().is_some_and(|r| !by.is_some_and(|by| by.contains(&r.policy)))
                });
                let other: Vec<usize> = other.collect();
                let mut tell = |pods: Vec<usize>, what: String| {
                    if !pods.is_empty() {
                        let members = Members { pods, addresses: Vec::new() };
                        let who = self.groups.describe(&members).join(", ");
                        problems.push(Problem { message: format!("{who}: {what}"), flow: None });
                    }
                };
                tell(open, format!("open for {direction}, no policy isolates it"));
                tell(host, "on the host network, where no policy applies".to_owned());
                let by = reason.as_ref().map_or("", |reason| &reason.text);
                tell(other, format!("isolated for {direction}, and not by {by}"));
            }
        }
        Ok(problems)
    }

    /// Traffic of a claim for an example: on a port that the destination has, if there is one.
    fn traffic(&self, claim: &Claim, destination: End) -> Traffic {
        let ports = match destination {
            End::Pod(pod) => self.cluster.pods[pod].ports.as_slice(),
            End::Address(_) => &[],
        };
        let mut known = ports.iter().map(|port| Traffic::Port(port.protocol, port.port));
        known.find(|traffic| claim.contains(*traffic)).unwrap_or_else(|| claim.example())
    }

    /// Why a connection is as it is, as `portcullis why` says it.
    pub(super) fn why(&self, flow: Flow) -> String {
        why::text(self.input, self.cluster, self.program, &self.names, flow, false)
    }
}

/// A test must be able to fail.
const NOTHING: &str = "this tests nothing: policies do not decide what a pod opens to itself, what \
                       addresses outside open among themselves, and families that no pod has";

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use portcullis_core::Program;
    use portcullis_core::model::Cluster;
    use portcullis_core::program::Judgement;
    use portcullis_kube::{Input, Options, Source, read_values};
    use portcullis_tests::engine::{cluster, end};
    use portcullis_tests::generate::{Size, flows, world};
    use portcullis_tests::oracle::{self, End as OracleEnd};
    use portcullis_tests::property::holds;
    use proptest::test_runner::TestCaseError;

    use super::super::file;
    use super::*;

    /// Whether tests hold, one by one; an error where one cannot be run.
    fn judged(cluster: &Cluster, tests: &str) -> Vec<Result<bool, String>> {
        let mut input = Input::default();
        input.cluster = cluster.clone();
        input.namespace = "default".to_owned();
        let text = format!("tests:\n{tests}");
        let (values, mut diagnostics) =
            read_values(&[Source::Text { name: "t.yaml".to_owned(), text }], &Options::default());
        let files = file::read(&values, &mut diagnostics);
        assert_eq!(diagnostics, []);
        let program = Program::compile(cluster);
        let mut world = World::of(&input, cluster, &program);
        let tests = files.iter().flat_map(|file| &file.tests);
        let judge = |test| world.judge(test).map(|problems| problems.is_empty());
        tests.map(judge).map(|judged| judged.map_err(|d| d.to_string())).collect()
    }

    #[test]
    fn a_policy_that_only_perhaps_allows_is_not_the_reason() {
        // Pods of a workload have no address yet.
        let policy = |name: &str, from: &str| {
            format!(
                "{{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {{name: {name}}}, \
                 spec: {{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{from: [{from}]}}]}}}}"
            )
        };
        let pod = |name: &str| {
            format!(
                "{{kind: Deployment, apiVersion: apps/v1, metadata: {{name: {name}}}, spec: {{replicas: \
                 1, selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: \
                 {name}}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}}}}}"
            )
        };
        let judge = |policies: &[String], pod_cidrs: &[&str], tests: &str| {
            let all = [policies, &[pod("a"), pod("b")]].concat();
            let text = all.join("\n---\n");
            let source = Source::Text { name: "m.yaml".to_owned(), text };
            let mut cluster = portcullis_kube::load(&[source], &Options::default()).cluster;
            assert_eq!((cluster.pods.len(), cluster.policies.len()), (2, policies.len()));
            cluster.pod_cidrs = pod_cidrs.iter().map(|net| net.parse().unwrap()).collect();
            judged(&cluster, tests)
        };
        let block = policy("block", "{ipBlock: {cidr: 10.0.0.0/8}}");
        let labels = policy("labels", "{podSelector: {matchLabels: {app: a}}}");
        let tests = "- allow: {from: a, to: b, port: 80, because: block}\n\
                     - allow: {from: a, to: b, port: 80, because: labels}\n";
        assert_eq!(judge(&[block.clone(), labels], &[], tests), [Ok(false), Ok(true)]);
        // One that has all addresses that pods get allows them surely, and another does not matter.
        let tests = "- allow: {from: a, to: b, port: 80, because: block}\n";
        let other = policy("other", "{podSelector: {matchLabels: {app: c}}}");
        let both = [block, other];
        assert_eq!(judge(&both, &["10.244.0.0/16"], tests), [Ok(true)]);
        assert_eq!(judge(&both, &["10.244.0.0/16", "fd00::/64"], tests), [Ok(false)]);
        assert_eq!(judge(&both, &[], tests), [Ok(false)]);
    }

    #[test]
    fn what_is_allowed_and_denied_is_so_for_the_oracle() {
        let told = Cell::new([0; 2]);
        holds(world(Size::MEDIUM), |world| {
            let cluster = cluster(&world);
            let program = Program::compile(&cluster);
            let name = |end| match end {
                OracleEnd::Pod(pod) => {
                    let pod = &cluster.pods[pod];
                    format!("{}/pod/{}", pod.namespace, pod.name)
                }
                OracleEnd::Address(address) => format!("\"{address}\""),
            };
            let is_there = |end: OracleEnd| match end {
                OracleEnd::Pod(pod) => !cluster.pods[pod].finished,
                OracleEnd::Address(_) => true,
            };
            let mut expected = Vec::new();
            let mut tests = String::new();
            let mut seen = BTreeSet::new();
            for flow in flows(&world, 120) {
                let ends = [flow.source, flow.destination];
                let some_pod = ends.iter().any(|end| match end {
                    OracleEnd::Pod(_) => true,
                    OracleEnd::Address(address) => program.endpoint(*address).pod.is_some(),
                });
                if !some_pod
                    || !ends.into_iter().all(is_there)
                    || !seen.insert((ends, flow.traffic))
                {
                    continue;
                }
                let mut paths = program.paths(end(flow.source), end(flow.destination)).peekable();
                // What is not known, and what a pod opens to itself or on its own node, is apart.
                let apart = |path| {
                    let closed = match program.path_passes(&path, flow.traffic) {
                        true => Judgement::Allowed,
                        false => Judgement::Refused,
                    };
                    program.exempt(&path).is_some() || program.judge(&path, flow.traffic) != closed
                };
                let itself = flow.source == flow.destination;
                if itself || paths.peek().is_none() || paths.any(apart) {
                    continue;
                }
                let port = match flow.traffic {
                    Traffic::Other => "icmp".to_owned(),
                    Traffic::Port(_, 0) => continue,
                    Traffic::Port(protocol, port) => {
                        format!("{port}/{}", protocol.as_str().to_lowercase())
                    }
                };
                let answers = oracle::allowed(&world, flow.source, flow.destination, flow.traffic);
                let (from, to) = (name(flow.source), name(flow.destination));
                for keyword in ["allow", "deny"] {
                    tests.push_str(&format!(
                        "- {keyword}: {{from: {from}, to: {to}, port: {port}}}\n"
                    ));
                }
                let all = answers.values().all(|allowed| *allowed);
                let none = answers.values().all(|allowed| !*allowed);
                let [allows, denies] = told.get();
                told.set([allows + usize::from(all), denies + usize::from(none)]);
                expected.extend([Ok(all), Ok(none)]);
            }
            if expected.is_empty() {
                return Ok(());
            }
            let found = judged(&cluster, &tests);
            let lines = tests.lines().zip(found).zip(expected);
            for ((line, found), expected) in lines {
                // An address that a host has is every pod on it, and each is judged.
                if found != expected && !line.contains('"') {
                    let why = format!("{line}: {found:?} and not {expected:?}\n{cluster:#?}");
                    return Err(TestCaseError::fail(why));
                }
            }
            Ok(())
        });
        assert!(told.get().iter().all(|n| *n > 1_000), "only {told:?} connections");
    }
}
