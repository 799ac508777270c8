//! The manifest reader: whatever comes in, nothing panics and no policy is lost. The property
//! tests of the reader are its twin.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/kube/tests/reader/never_lost.rs"]
mod never_lost;

fuzz_target!(|text: &str| never_lost::check(text));
