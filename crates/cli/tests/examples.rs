//! Each example is valid, and engine and kernel do with it what its `expected.jsonl` says.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

type Line = Map<String, Value>;

fn examples() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut examples: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    examples.sort();
    assert!(examples.len() >= 13, "examples are missing: {examples:?}");
    examples
}

/// What a command prints. Panics unless it exits as expected.
fn portcullis(arguments: &[&str], example: &Path, code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.args(arguments).arg("-f").arg(example).output().unwrap();
    let (out, errors) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?} {example:?}:\n{out}{errors}");
    out
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn expected(example: &Path) -> Vec<Line> {
    let lines = lines(&fs::read_to_string(example.join("expected.jsonl")).unwrap());
    for verdict in ["allow", "deny"] {
        assert!(lines.iter().any(|l| l["verdict"] == verdict), "{example:?}: nothing to {verdict}");
    }
    lines
}

#[test]
fn every_example_is_valid_without_a_word() {
    for example in examples() {
        let out = portcullis(&["check"], &example, 0);
        assert!(out.starts_with("valid: read "), "{example:?}:\n{out}");
        assert!(example.join("README.md").exists(), "{example:?} has no README.md");
    }
}

#[test]
fn the_engine_does_with_every_example_what_is_expected() {
    for example in examples() {
        let flows = example.join("expected.jsonl");
        let out = portcullis(&["eval", "--flows", flows.to_str().unwrap()], &example, 0);
        let (expected, found) = (expected(&example), lines(&out));
        assert_eq!(expected.len(), found.len(), "{example:?}");
        for (expected, mut found) in expected.into_iter().zip(found) {
            assert!(found.remove("reason").is_some());
            // What is expected is what the lab does, where every pod has an address.
            found.remove("missing");
            assert_eq!(expected, found, "{example:?}");
        }
    }
}

#[test]
fn the_kernel_does_with_every_example_what_is_expected() {
    for example in examples() {
        let out = portcullis(&["lab", "run", "-o", "json"], &example, 0);
        let run: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(run["differences"], 0);
        // By both ends, port and protocol: the verdict on each family.
        let mut observed: BTreeMap<[String; 4], BTreeMap<&str, &str>> = BTreeMap::new();
        for c in run["connections"].as_array().unwrap() {
            let key = ["from", "to", "port", "protocol"].map(|field| c[field].to_string());
            let family = if c["source"].as_str().unwrap().contains(':') { "IPv6" } else { "IPv4" };
            let verdict = c["observed"].as_str().unwrap();
            observed.entry(key).or_default().insert(family, verdict);
        }
        let mut tried = 0;
        for line in expected(&example) {
            let port = line.get("port").unwrap_or(&Value::Null).to_string();
            let protocol = line["protocol"].to_string();
            for from in pods(&run, &line["from"]) {
                for to in pods(&run, &line["to"]) {
                    let (port, protocol) = (port.clone(), protocol.clone());
                    let key = [from.clone(), to.clone(), port, protocol];
                    let Some(families) = observed.get(&key) else { continue };
                    tried += 1;
                    for (family, verdict) in families {
                        let expected = match line.get("families") {
                            Some(each) => &each[family],
                            None => &line["verdict"],
                        };
                        assert_eq!(expected, verdict, "{example:?}: {line:?} on {family}");
                    }
                }
            }
        }
        assert!(tried >= 5, "{example:?}: only {tried} expectations could be tried");
    }
}

#[test]
fn the_tests_of_examples_hold_offline_and_with_real_packets() {
    let with_tests = examples().into_iter().filter(|example| example.join("tests").is_dir());
    let mut count = 0;
    for example in with_tests {
        let tests = example.join("tests");
        for lab in [&[][..], &["--lab"]] {
            let arguments = [&["test", tests.to_str().unwrap(), "-o", "json"], lab].concat();
            let report: Value = serde_json::from_str(&portcullis(&arguments, &example, 0)).unwrap();
            assert_eq!(report["failed"], 0);
            let of_packets = |test: &&Value| test["tried"].as_u64().is_some_and(|n| n > 0);
            let tests = report["tests"].as_array().unwrap();
            let isolated = tests.iter().filter(|t| t["name"].as_str().unwrap().contains("isolate"));
            let expected = if lab.is_empty() { 0 } else { tests.len() - isolated.count() };
            assert_eq!(tests.iter().filter(of_packets).count(), expected, "{example:?}");
        }
        count += 1;
    }
    assert!(count >= 5, "only {count} examples have tests");
}

#[test]
fn the_first_file_of_tests_of_every_example_holds_at_once() {
    for example in examples() {
        let text = portcullis(&["test", "--init"], &example, 0);
        let file =
            std::env::temp_dir().join(format!("portcullis-init-{}.yaml", std::process::id()));
        fs::write(&file, &text).unwrap();
        let out = portcullis(&["test", file.to_str().unwrap()], &example, 0);
        assert!(out.ends_with(", all hold\n"), "{example:?}:\n{text}\n{out}");
        fs::remove_file(&file).unwrap();
    }
}

/// The endpoints of a lab that a name of a pod, a workload or an address stands for, quoted.
fn pods(run: &Value, name: &Value) -> Vec<String> {
    let name = name.as_str().unwrap();
    let parts: Vec<&str> = name.split('/').collect();
    let endpoints = run["endpoints"].as_array().unwrap().iter();
    let names = endpoints.map(|e| e["name"].as_str().unwrap());
    let is = |endpoint: &str| match parts.as_slice() {
        [namespace, _kind, workload] => endpoint
            .strip_prefix(&format!("{namespace}/{workload}-"))
            .is_some_and(|ordinal| ordinal.bytes().all(|b| b.is_ascii_digit())),
        _ => endpoint == name,
    };
    names.filter(|endpoint| is(endpoint)).map(|name| Value::from(name).to_string()).collect()
}
