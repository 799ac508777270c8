//! What changes between two states: which connections open, close, widen and narrow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::Program;
use crate::model::{Cluster, Direction, Pod};
use crate::net::{Family, IpRange, previous_address};
use crate::portset::PortSet;
use crate::program::Origin;
use crate::reach::{Allowed, ClassId, Opens, Reach, Unit};

/// A state before, and one after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Before.
    Old,
    /// After.
    New,
}

impl Side {
    /// Both, the older first.
    pub const ALL: [Side; 2] = [Side::Old, Side::New];
}

/// What may be opened between two ends, on IPv4 and on IPv6. Families that the two do not share
/// are as the other is.
pub type Sets = [MayOpen; 2];

/// What may be opened. The two differ where some fact is missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MayOpen {
    /// However the missing facts turn out.
    pub surely: PortSet,
    /// If they turn out so.
    pub perhaps: PortSet,
}

impl MayOpen {
    /// Nothing in any case.
    pub const NOTHING: MayOpen = MayOpen { surely: PortSet::NOTHING, perhaps: PortSet::NOTHING };

    /// What depends on missing facts.
    pub fn doubtful(&self) -> PortSet {
        self.perhaps.without(&self.surely)
    }

    fn covers(&self, other: &MayOpen) -> bool {
        self.surely.covers(&other.surely) && self.perhaps.covers(&other.perhaps)
    }
}

/// What becomes of the connections of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nothing was allowed, and now something is.
    Opened,
    /// Something was allowed, and now nothing is.
    Closed,
    /// More is allowed.
    Widened,
    /// Less is allowed.
    Narrowed,
    /// Something else is allowed: neither holds all of the other.
    Shifted,
}

impl Kind {
    /// What lies between two different values.
    pub fn between(old: &Sets, new: &Sets) -> Kind {
        let covers = |a: &Sets, b: &Sets| a.iter().zip(b).all(|(a, b)| a.covers(b));
        let nothing = |sets: &Sets| sets.iter().all(|open| open.perhaps.is_nothing());
        match (covers(new, old), covers(old, new)) {
            (true, _) if nothing(old) => Kind::Opened,
            (true, _) => Kind::Widened,
            (_, true) if nothing(new) => Kind::Closed,
            (_, true) => Kind::Narrowed,
            (false, false) => Kind::Shifted,
        }
    }

    /// Whether something is allowed that was not.
    pub fn gains(self) -> bool {
        matches!(self, Kind::Opened | Kind::Widened | Kind::Shifted)
    }

    /// Whether something is not allowed that was.
    pub fn loses(self) -> bool {
        matches!(self, Kind::Closed | Kind::Narrowed | Kind::Shifted)
    }
}

/// Pods or addresses that fare alike in both states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joint {
    /// The pods, as numbers into [`Diff::pods`], ascending.
    pub pods: Vec<usize>,
    /// The addresses, if these are not pods.
    pub addresses: Vec<IpRange>,
    /// The classes in each state; `None` in the state that does not have these pods.
    classes: [Option<[Option<ClassId>; 2]>; 2],
}

/// Why something is allowed in one state that is not in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A rule of that state allows it.
    Rule(Side, Origin),
    /// A policy of the other state isolates an end in this direction, which none does here.
    Isolates(Side, u32, Direction),
    /// An end is only there in this state.
    Exists(Side),
}

/// Two states, laid side by side.
#[derive(Debug)]
pub struct Diff<'a> {
    /// The pods of either state: index in the old cluster, index in the new.
    pub pods: Vec<[Option<usize>; 2]>,
    /// The parts that everything there is falls into.
    pub joints: Vec<Joint>,
    reaches: [Reach<'a>; 2],
}

impl<'a> Diff<'a> {
    /// Pods of the two states are the same if they have the same name. One that has no namesake
    /// is compared with the pods of its workload, so that other replicas are no difference; where
    /// there is no such workload either, with nothing.
    pub fn of(clusters: [&Cluster; 2], programs: [&'a Program; 2]) -> Diff<'a> {
        let mut reaches = programs.map(Reach::of);
        let there: [Places<'_>; 2] = clusters.map(Places::of);
        let mut diff_pods = Vec::new();
        let mut by_classes: FxHashMap<_, usize> = FxHashMap::default();
        let mut joints: Vec<Joint> = Vec::new();
        let mut names: BTreeSet<(&str, &str)> = BTreeSet::new();
        there.iter().for_each(|places| names.extend(places.pods.keys()));
        for name in names {
            let found = [0, 1].map(|side| there[side].pods.get(&name).copied());
            let pod = |side: usize| found[side].map(|i| &clusters[side].pods[i]);
            let number = diff_pods.len();
            diff_pods.push(found);
            let mut classes: [Vec<Option<[Option<ClassId>; 2]>>; 2] = Default::default();
            for side in [0, 1] {
                let stand_ins = pod(1 - side).and_then(workload);
                let stand_ins = stand_ins.and_then(|w| there[side].workloads.get(&w));
                let pods = match found[side] {
                    Some(pod) => vec![pod],
                    None => stand_ins.cloned().unwrap_or_default(),
                };
                let known: BTreeSet<_> = pods.iter().map(|p| reaches[side].pod(*p)).collect();
                classes[side].extend(known.into_iter().map(Some));
                if classes[side].is_empty() {
                    classes[side].push(None);
                }
            }
            for old in &classes[0] {
                for new in &classes[1] {
                    let key = [*old, *new];
                    let joint = *by_classes.entry(key).or_insert(joints.len());
                    if joint == joints.len() {
                        joints.push(Joint { pods: vec![], addresses: vec![], classes: key });
                    }
                    joints[joint].pods.push(number);
                }
            }
        }
        joints.extend(outside(&mut reaches, &joints));
        Diff { pods: diff_pods, joints, reaches }
    }

    /// What a joint may open to each, in their order: in the old state and in the new.
    pub fn row(&mut self, source: usize) -> Vec<[Allowed; 2]> {
        let rows = [0, 1].map(|side| {
            let unit = |joint: &Joint| Unit {
                pods: Vec::new(),
                addresses: Vec::new(),
                classes: joint.classes[side].unwrap_or_default(),
            };
            let units: Vec<Unit> = self.joints.iter().map(unit).collect();
            self.reaches[side].unit_row(&units, &units[source])
        });
        let [old, new] = rows;
        old.into_iter().zip(new).map(|(old, new)| [old, new]).collect()
    }

    /// The sets of a value in a state.
    pub fn sets(&self, side: Side, allowed: Allowed) -> Sets {
        let of = |Opens { surely, perhaps }: Opens| {
            let set = |id| self.reaches[side as usize].set(id).clone();
            MayOpen { surely: set(surely), perhaps: set(perhaps) }
        };
        match allowed {
            Allowed::Alike(set) => [of(set), of(set)],
            Allowed::NoFamily(_) => [MayOpen::NOTHING; 2],
            Allowed::ByFamily(sets) => sets.map(of),
        }
    }

    /// Why a pair may do something in one state that it may not in the other.
    pub fn causes(
        &mut self,
        source: usize,
        destination: usize,
        values: [Allowed; 2],
    ) -> Vec<Cause> {
        let mut causes = BTreeSet::new();
        for (has, lacks) in [(Side::New, Side::Old), (Side::Old, Side::New)] {
            let more = self.sets(has, values[has as usize]);
            let less = self.sets(lacks, values[lacks as usize]);
            for family in Family::ALL {
                let at = family as usize;
                if less[at].covers(&more[at]) {
                    continue;
                }
                let joints = &self.joints;
                let class = |side: Side, joint: usize| {
                    let classes = joints[joint].classes[side as usize];
                    classes.map(|classes| classes[at])
                };
                for direction in Direction::ALL {
                    let (subject, remote) = match direction {
                        Direction::Egress => (source, destination),
                        Direction::Ingress => (destination, source),
                    };
                    let here = (class(has, subject), class(has, remote));
                    let there = (class(lacks, subject), class(lacks, remote));
                    let (Some(there_subject), Some(there_remote)) = there else {
                        causes.insert(Cause::Exists(has));
                        continue;
                    };
                    let (Some(Some(subject)), Some(Some(remote))) = here else { continue };
                    let lacking = match (there_subject, there_remote) {
                        (Some(s), Some(r)) => {
                            end(&mut self.reaches[lacks as usize], s, direction, r, family)
                        }
                        _ => continue,
                    };
                    if lacking.covers(&more[at]) {
                        continue;
                    }
                    let reach = &self.reaches[has as usize];
                    if reach.isolation(subject, direction).is_none() {
                        let other = &self.reaches[lacks as usize];
                        let rules = there_subject.and_then(|s| other.isolation(s, direction));
                        let policies = rules.into_iter().flat_map(|rules| &rules.policies);
                        causes.extend(policies.map(|p| Cause::Isolates(lacks, *p, direction)));
                        continue;
                    }
                    for entry in reach.entries(subject, direction, remote, family) {
                        let allows = PortSet::of([entry.ports]);
                        let lacks = |more: &PortSet, lacking: &PortSet| {
                            !lacking.covers(&allows.intersection(more))
                        };
                        if lacks(&more[at].surely, &lacking.surely)
                            || lacks(&more[at].perhaps, &lacking.perhaps)
                        {
                            let origin = Origin { peer: None, port: None, ..entry.origin };
                            causes.insert(Cause::Rule(has, origin));
                        }
                    }
                }
            }
        }
        causes.into_iter().collect()
    }
}

/// What the policies of one end allow.
fn end(
    reach: &mut Reach<'_>,
    subject: ClassId,
    direction: Direction,
    remote: ClassId,
    family: Family,
) -> MayOpen {
    let Opens { surely, perhaps } = reach.end(subject, direction, remote, family);
    MayOpen { surely: reach.set(surely).clone(), perhaps: reach.set(perhaps).clone() }
}

/// Where the pods of a state are, but for finished ones.
struct Places<'a> {
    pods: BTreeMap<(&'a str, &'a str), usize>,
    workloads: BTreeMap<(&'a str, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Places<'a> {
    fn of(cluster: &'a Cluster) -> Places<'a> {
        let mut places = Places { pods: BTreeMap::new(), workloads: BTreeMap::new() };
        for (i, pod) in cluster.pods.iter().enumerate().filter(|(_, pod)| !pod.finished) {
            places.pods.insert((&pod.namespace, &pod.name), i);
            if let Some(workload) = workload(pod) {
                places.workloads.entry(workload).or_default().push(i);
            }
        }
        places
    }
}

fn workload(pod: &Pod) -> Option<(&str, &str, &str)> {
    let workload = pod.workload.as_ref()?;
    Some((&pod.namespace, &workload.kind, &workload.name))
}

/// The addresses outside, cut where a block of either state begins or ends.
fn outside(reaches: &mut [Reach<'_>; 2], pods: &[Joint]) -> Vec<Joint> {
    let mut joints: Vec<Joint> = Vec::new();
    for family in Family::ALL {
        let at = family as usize;
        let here = |joint: &Joint| joint.classes.iter().flatten().any(|c| c[at].is_some());
        if !pods.is_empty() && !pods.iter().any(here) {
            continue;
        }
        let intervals = [0, 1].map(|side| reaches[side].intervals(family));
        let firsts: BTreeSet<IpAddr> = intervals.iter().flatten().map(|r| r.first).collect();
        let end = intervals.iter().flatten().map(|r| r.last).max();
        let lasts = firsts.iter().skip(1).filter_map(|a| previous_address(*a)).chain(end);
        let mut by_classes: FxHashMap<_, usize> = FxHashMap::default();
        for (first, last) in firsts.iter().copied().zip(lasts) {
            let classes = [0, 1].map(|side| reaches[side].outside(first));
            let joint = *by_classes.entry(classes).or_insert(joints.len());
            if joint == joints.len() {
                let classes = classes.map(|class| {
                    let mut classes = [None; 2];
                    classes[at] = Some(class);
                    Some(classes)
                });
                joints.push(Joint { pods: Vec::new(), addresses: Vec::new(), classes });
            }
            joints[joint].addresses.push(IpRange { first, last });
        }
    }
    joints
}
