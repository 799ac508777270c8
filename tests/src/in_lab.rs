//! Suites that send real packets in labs.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Runs tests, one after the other, in a process that may build labs. To be called before its first
/// thread.
pub fn run(tests: impl FnOnce() -> Result<Vec<Trial>, String>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Namespaces are entered by the one thread there is, and labs are built one after another.
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = portcullis_lab::enter()
    {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    match tests() {
        Ok(tests) => libtest_mimic::run(&arguments, tests).exit_code(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
