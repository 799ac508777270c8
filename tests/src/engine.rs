//! The engine's answers in the oracle's terms.

use std::collections::BTreeMap;

use portcullis_core::model::Cluster;
use portcullis_core::net::Family;
use portcullis_core::program::{self, Effect, Path, Verdict};
use portcullis_core::{Program, validate};

use crate::generate::Flow;
use crate::oracle::{End, World};

/// The state that the engine compiles for a world: with the policies as its validation reads them.
pub fn cluster(world: &World) -> Cluster {
    let policies = world.policies.iter().map(|raw| validate::read(raw).policy).collect();
    Cluster { policies, ..world.cluster.clone() }
}

/// Whether a flow is allowed, for each address family that both ends have.
pub fn allowed(program: &Program, flow: &Flow) -> BTreeMap<Family, bool> {
    by_family(program, flow, |path| program.path_passes(path, flow.traffic))
}

/// Whether the first packet of a flow gets through, in the same way.
pub fn forwarded(program: &Program, flow: &Flow) -> BTreeMap<Family, bool> {
    by_family(program, flow, |path| program.path_effect(path, flow.traffic) != Effect::Dropped)
}

fn by_family(
    program: &Program,
    flow: &Flow,
    judge: impl Fn(&Path) -> bool,
) -> BTreeMap<Family, bool> {
    let mut answers = BTreeMap::new();
    for path in program.paths(end(flow.source), end(flow.destination)) {
        let families = path.family().map_or(Family::ALL.to_vec(), |family| vec![family]);
        let passes = judge(&path);
        answers.extend(families.into_iter().map(|family| (family, passes)));
    }
    answers
}

/// The verdict that sums up the answers for the families.
pub fn verdict(answers: &BTreeMap<Family, bool>) -> Verdict {
    let mut allowed = answers.iter().filter(|(_, allowed)| **allowed).map(|(&family, _)| family);
    match (allowed.next(), allowed.next()) {
        (None, _) => Verdict::Refused,
        (Some(allowed), None) if answers.len() == 2 => Verdict::Mixed { allowed },
        (Some(_), _) => Verdict::Allowed,
    }
}

/// The engine's name for an end.
pub fn end(end: End) -> program::End {
    match end {
        End::Pod(index) => program::End::Pod(index),
        End::Address(address) => program::End::Address(address),
    }
}
