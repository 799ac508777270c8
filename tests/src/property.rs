//! Properties of random inputs, with failures that a person can read.
#![allow(clippy::panic, reason = "a property that does not hold fails its test by panicking")]

use proptest::prelude::{ProptestConfig, Strategy, TestCaseError};
use proptest::test_runner::{TestError, TestRunner};

/// Checks a property on many random inputs: 256, or `PROPTEST_CASES`. Panics with the reason that
/// the smallest input gives on which it does not hold, and nothing else: let the reason be the
/// text of a scenario file, to be kept in `cases/`.
#[track_caller]
pub fn holds<S: Strategy>(inputs: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..ProptestConfig::default()
    });
    match runner.run(&inputs, property) {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("does not hold:\n{reason}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
