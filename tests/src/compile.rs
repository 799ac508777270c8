//! What must hold of any manifests at all, whoever wrote them: the body of a fuzz target and of the
//! property test beside it.

use portcullis_core::Program;
use portcullis_core::explain::{EndExplanation, explain};
use portcullis_core::model::Cluster;
use portcullis_core::net::Traffic;
use portcullis_core::program::{End, Fact, Judgement, Verdict};
use portcullis_dataplane::{Dataplane, Fake, share};
use portcullis_kube::{Options, Source, load};

/// The most pods that are asked about; the rest is compiled all the same.
const MOST_PODS: usize = 8;

/// Compiles whatever of the text can be read, closed readings of broken policies included, and
/// holds verdicts, explanations and kernel plans against each other. Panics where they differ.
pub fn check(text: &str) {
    let source = Source::Text { name: "any".to_owned(), text: text.to_owned() };
    let input = load(&[source], &Options::default());
    let closed = Cluster { policies: input.meanings().cloned().collect(), ..input.cluster.clone() };
    for cluster in [&input.cluster, &closed] {
        let program = Program::compile(cluster);
        let pods = 0..cluster.pods.len().min(MOST_PODS);
        let outside = ["10.0.0.1", "2001:db8::1"].iter().filter_map(|a| a.parse().ok());
        let ends: Vec<End> = pods.map(End::Pod).chain(outside.map(End::Address)).collect();
        for traffic in portcullis_lab::traffics(cluster).into_iter().take(MOST_PODS) {
            for source in &ends {
                for destination in &ends {
                    agree(cluster, &program, *source, *destination, traffic);
                }
            }
        }
        for node in cluster.pods.iter().filter_map(|pod| pod.node.as_ref()).take(MOST_PODS) {
            let (state, _) = share(cluster, node);
            let applied = Fake::new().apply(&state).map_err(|error| format!("{node}: {error}"));
            assert!(applied.is_ok(), "{applied:?}");
        }
    }
}

fn agree(cluster: &Cluster, program: &Program, source: End, destination: End, traffic: Traffic) {
    let verdict = program.verdict(source, destination, traffic);
    let why = explain(cluster, program, source, destination, traffic);
    assert_eq!(why.verdict, verdict, "{source:?} -> {destination:?} {traffic}");
    for path in &why.paths {
        let judgement = match (path.exemption, &path.egress, &path.ingress) {
            (Some(_), ..) => Judgement::Allowed,
            (None, EndExplanation::Refused { .. }, _)
            | (None, _, EndExplanation::Refused { .. }) => Judgement::Refused,
            (None, EndExplanation::Undetermined { .. }, _)
            | (None, _, EndExplanation::Undetermined { .. }) => Judgement::Undetermined,
            _ => Judgement::Allowed,
        };
        // Whether an end is the other's own node is about the path, and not about its policies.
        let own_node = path.missing.iter().any(|fact| matches!(fact, Fact::Node(_)));
        assert!(path.judgement == judgement || own_node, "{path:?}");
        assert_eq!(path.missing.is_empty(), path.judgement != Judgement::Undetermined, "{path:?}");
        match verdict {
            Verdict::Allowed => assert_eq!(path.judgement, Judgement::Allowed),
            Verdict::Refused => assert_eq!(path.judgement, Judgement::Refused),
            Verdict::Mixed { allowed } => {
                let passes = path.judgement == Judgement::Allowed;
                assert_eq!(passes, path.path.family() == Some(allowed));
            }
            Verdict::Undetermined => {}
        }
        let passes = program.path_passes(&path.path, traffic);
        assert!(!passes || path.judgement != Judgement::Refused, "{path:?}");
    }
}
