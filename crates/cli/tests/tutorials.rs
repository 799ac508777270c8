//! The tutorials are what happens: each is run with the real kubectl against a lab of its own.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The commands of the tutorials give no name, and others on this machine may have a lab.
fn name() -> String {
    format!("test-tutorials-{}", std::process::id())
}

/// Ends with the test, also with one that fails.
struct Lab(Child);

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn up(kubeconfig: &Path, topology: &str) -> Lab {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["lab", "up", "--nodes", "2", "--topology", topology, "--write-kubeconfig"]);
    command
        .env("PORTCULLIS_LAB", name())
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut lab = Lab(command.spawn().unwrap());
    let mut out = BufReader::new(lab.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Ctrl-C") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the lab did not come up");
    }
    lab
}

#[test]
fn the_tutorials_are_what_happens() {
    let Some(kubectl) = on_path("kubectl") else {
        let required = env::var("PORTCULLIS_REQUIRE_KUBECTL").is_ok_and(|v| v == "1");
        assert!(!required, "kubectl is not installed, and PORTCULLIS_REQUIRE_KUBECTL is 1");
        // Not with a macro: what those print is not shown of a test that passes.
        let said = "SKIPPED: no kubectl on PATH, so no tutorial was tested\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        return;
    };
    // kubectl keeps what it discovers under HOME.
    let home = env::temp_dir().join(format!("portcullis-tutorials-{}", std::process::id()));
    fs::create_dir_all(&home).unwrap();
    let kubeconfig = home.join("kubeconfig");
    for topology in ["routed", "bridged"] {
        let _lab = up(&kubeconfig, topology);
        trycmd::TestCases::new()
            .register_bin("kubectl", &kubectl)
            .env("KUBECONFIG", kubeconfig.to_string_lossy())
            .env("PORTCULLIS_LAB", name())
            .env("HOME", home.to_string_lossy())
            .case("../../docs/tutorials/*.md")
            .run();
    }
    fs::remove_dir_all(&home).unwrap();
}
