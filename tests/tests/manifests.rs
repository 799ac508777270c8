//! Worlds written as manifests and read back.

use portcullis_tests::generate::{self, Counts, Size};
use portcullis_tests::oracle::World;
use portcullis_tests::scenario::Scenario;
use portcullis_tests::{manifests, property};
use proptest::prelude::TestCaseError;

#[test]
fn what_is_written_as_manifests_is_read_back_the_same() {
    property::holds(generate::world(Size::MEDIUM), read_back);
}

#[test]
fn a_large_cluster_is_read_back_the_same() -> Result<(), TestCaseError> {
    read_back(generate::cluster(7, Counts { namespaces: 5, nodes: 3, pods: 100, policies: 60 }))
}

fn read_back(mut world: World) -> Result<(), TestCaseError> {
    let text = manifests::yaml(&world);
    if text.is_empty() {
        return Ok(()); // A world without any object is no input.
    }
    let read = Scenario::parse("world", &text).map_err(TestCaseError::fail)?.world;
    // The reader does what the API server does to the labels of a namespace (SEMANTICS 11).
    for (name, labels) in &mut world.cluster.namespaces {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
    }
    if read == world {
        return Ok(());
    }
    let read = manifests::yaml(&read);
    Err(TestCaseError::fail(format!("written:\n{text}\nread back, and written again:\n{read}")))
}
