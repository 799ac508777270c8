//! What is generated from the command line's definition: completions and manual pages.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

fn portcullis(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

#[test]
fn every_shell_gets_completions_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(portcullis(&["completions", shell])).unwrap();
        for word in ["check", "why", "eval", "probe", "replicas"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = std::env::temp_dir().join(format!("portcullis-man-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    portcullis(&["man", directory.to_str().unwrap()]);
    for page in [
        "portcullis",
        "portcullis-check",
        "portcullis-why",
        "portcullis-test",
        "portcullis-lab-run",
    ] {
        let text = fs::read_to_string(directory.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    fs::remove_dir_all(&directory).unwrap();
}
