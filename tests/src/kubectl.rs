//! What tests share that drive `portcullis lab up` with the real kubectl.
#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::process::{Lines, Running};

/// The kubectl of this machine. `None` where there is none, which is said together with what is not
/// tested without it; then it must not be required either (`PORTCULLIS_REQUIRE_KUBECTL`).
///
/// # Panics
/// It is required and not there.
pub fn found(not_tested: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files = env::split_paths(&path).map(|folder| folder.join("kubectl"));
    let kubectl = files.find(|file| file.is_file());
    if kubectl.is_none() {
        let required = env::var("PORTCULLIS_REQUIRE_KUBECTL").is_ok_and(|v| v == "1");
        assert!(!required, "kubectl is not installed, and PORTCULLIS_REQUIRE_KUBECTL is 1");
        // Not with a macro: what those print is not shown of a test that passes.
        let said = format!("SKIPPED: no kubectl on PATH, so {not_tested}\n");
        io::stderr().write_all(said.as_bytes()).unwrap();
    }
    kubectl
}

/// A lab of a process of its own, which ends with this.
pub struct Lab(#[expect(dead_code, reason = "it is there to be dropped")] Running);

impl Lab {
    /// Runs `lab up`, and returns when it is up.
    ///
    /// # Panics
    /// It does not come up.
    pub fn up(mut command: Command) -> Lab {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut lab = Running(command.spawn().unwrap());
        Lines::of(lab.0.stdout.take().unwrap()).until("Ctrl-C");
        Lab(lab)
    }
}
