//! The tutorials are what happens: each is run with the real kubectl against a lab. So is what
//! docs/observe.md says of Events.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::folder::Folder;
use portcullis_tests::kubectl;
use portcullis_tests::process::{LIMIT, limited};
use serde_json::Value;

/// A lab, and how kubectl and the tutorials reach it.
struct Up {
    lab: String,
    kubectl: PathBuf,
    _running: kubectl::Lab,
    home: Folder,
}

impl Up {
    /// `None` if there is no kubectl; then it must not be required either. The commands of the tutorials
    /// give no name of a lab, and others on this machine may have one.
    fn new(name: &str, arguments: &[&str]) -> Option<Up> {
        let kubectl = kubectl::found("it was not tested what kubectl shows")?;
        let lab = format!("test-{name}-{}", std::process::id());
        // kubectl keeps what it discovers under HOME.
        let home = Folder::new(&lab);
        let kubeconfig = home.join("kubeconfig");
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["lab", "up", "--nodes", "2"]).args(arguments);
        command.arg("--write-kubeconfig").arg(&kubeconfig).env("PORTCULLIS_LAB", &lab);
        let running = kubectl::Lab::up(command);
        Some(Up { lab, kubectl, _running: running, home })
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let kubeconfig = text(&self.home.join("kubeconfig"));
        [
            ("KUBECONFIG", kubeconfig),
            ("PORTCULLIS_LAB", self.lab.clone()),
            ("HOME", text(&self.home)),
        ]
    }

    /// Whether kubectl succeeds, and what it prints.
    fn kubectl(&self, arguments: &str) -> (bool, String) {
        let mut command = limited(&self.kubectl);
        command.args(arguments.split(' ')).envs(self.environment());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

#[test]
fn the_tutorials_are_what_happens() {
    for topology in ["routed", "bridged"] {
        let Some(up) = Up::new(topology, &["--topology", topology]) else { return };
        let tests = trycmd::TestCases::new();
        tests.register_bin("kubectl", &up.kubectl).timeout(LIMIT);
        for (name, value) in up.environment() {
            tests.env(name, value);
        }
        tests.case("../../docs/tutorials/*.md").run();
    }
}

/// Each word of a line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn a_refused_connection_is_an_event_that_kubectl_shows() {
    let Some(up) = Up::new("events", &["--events"]) else { return };
    let done = |arguments: &str| {
        let (succeeded, text) = up.kubectl(arguments);
        assert!(succeeded, "kubectl {arguments}: {text}");
        text
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tutorials/refused.in");
    done(&format!("apply -f {}", manifest.join("shop.yaml").display()));
    done("wait --for=condition=Ready pod --all -n bookshop --timeout=60s");
    let refused = || {
        let (reached, text) = up.kubectl("exec -n bookshop web -- curl -4 -s -m 1 http://db:3306");
        assert!(!reached, "{text}");
    };
    let events = || -> Vec<Value> {
        let selector = "--field-selector reason=ConnectionRefused";
        let text = done(&format!("get events -A {selector} -o json"));
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    // What is allowed is no Event.
    done("exec -n bookshop api -- curl -4 -s -m 5 http://db:3306");
    refused();
    let start = Instant::now();
    while events().is_empty() {
        assert!(start.elapsed() < LIMIT, "no Event");
        thread::sleep(Duration::from_millis(100));
    }
    refused();
    refused();
    thread::sleep(Duration::from_secs(2));
    let all = events();
    let [event] = &all[..] else { panic!("{all:#?}") };
    assert_eq!(event["involvedObject"]["name"], "db", "{event}");

    // Everything but the age and blanks is as on the page.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/observe.md");
    let page = fs::read_to_string(page).unwrap();
    let on_page = page.lines().find(|line| line.contains("  ConnectionRefused  "));
    let on_page = words(on_page.expect("docs/observe.md shows an Event"));
    let described = done("describe pod db -n bookshop");
    let event = described.lines().find(|line| line.contains("ConnectionRefused"));
    let event = words(event.unwrap_or_else(|| panic!("{described}")));
    let without_age = |words: &[&str]| [&words[..2], &words[3..]].concat().join(" ");
    assert_eq!(without_age(&event), without_age(&on_page), "{described}");
    let told = done("events --for pod/db -n bookshop");
    assert!(told.contains("ConnectionRefused"), "{told}");
}
