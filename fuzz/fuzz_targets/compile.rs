//! The compiler: whatever can be read compiles, and its answers agree with each other. The property
//! test in `tests/tests/compile.rs` is its twin.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| portcullis_tests::compile::check(text));
