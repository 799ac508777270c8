//! Policies with mistakes: every one is found.

use std::collections::BTreeSet;

use portcullis_core::validate;
use portcullis_tests::generate;
use proptest::prelude::ProptestConfig;
use proptest::{prop_assert_eq, proptest};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_mistake_is_reported_with_its_path_and_reason(invalid in generate::invalid()) {
        let errors = validate::read(&invalid.policy).errors.into_iter();
        let found: BTreeSet<_> = errors.map(|error| (error.path, error.reason)).collect();
        prop_assert_eq!(found, invalid.errors);
    }
}
