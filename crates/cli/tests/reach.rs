//! `reach` and `eval` give the same answers about every example.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What a command prints that is given a text.
fn portcullis(arguments: &[&str], example: &Path, input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let command = command.args(arguments).arg("-f").arg(example);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?} {example:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn reach_and_eval_agree_on_every_pair_of_pods_of_every_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let (mut tried, mut undetermined) = (0, 0);
    for entry in fs::read_dir(root).unwrap() {
        let example = entry.unwrap().path();
        if !example.is_dir() {
            continue;
        }
        let text = portcullis(&["reach", "--by", "pod", "-o", "json"], &example, "");
        let pairs: Vec<Value> = serde_json::from_str(&text).unwrap();
        let name = |end: &Value| end["name"].as_str().unwrap().to_owned();
        let ends: BTreeSet<String> =
            pairs.iter().flat_map(|p| [name(&p["from"]), name(&p["to"])]).collect();
        let ends = ends.iter().filter(|name| *name != "outside");
        let ports = pairs.iter().flat_map(|p| p["ports"].as_array().unwrap());
        let ports: BTreeSet<u64> = ports.map(|p| p["port"].as_u64().unwrap()).collect();
        let mut flows = String::new();
        for from in ends.clone() {
            for to in ends.clone().filter(|to| *to != from) {
                for port in ports.iter().filter(|port| **port != 0).chain([&39_999]) {
                    for protocol in ["TCP", "UDP"] {
                        let flow =
                            json!({"from": from, "to": to, "port": port, "protocol": protocol});
                        flows.push_str(&format!("{flow}\n"));
                    }
                }
            }
        }
        for line in
            portcullis(&["eval", "--undetermined", "--flows", "-"], &example, &flows).lines()
        {
            let flow: Value = serde_json::from_str(line).unwrap();
            let of_pair =
                |p: &&Value| p["from"]["name"] == flow["from"] && p["to"]["name"] == flow["to"];
            let allows = |pair: &Value| {
                let on = |p: &Value| {
                    let first = p["port"].as_u64().unwrap();
                    let last = p.get("endPort").map_or(first, |last| last.as_u64().unwrap());
                    let port = flow["port"].as_u64().unwrap();
                    p["protocol"] == flow["protocol"] && (first..=last).contains(&port)
                };
                let in_set = |set: &Value| {
                    set["everything"] == true || set["ports"].as_array().unwrap().iter().any(on)
                };
                (in_set(pair), pair.get("perhaps").is_some_and(in_set))
            };
            let doubtful = pairs.iter().filter(of_pair).any(|pair| allows(pair).1);
            let allowing: Vec<&Value> =
                pairs.iter().filter(of_pair).filter(|pair| allows(pair).0).collect();
            let reached = match allowing.as_slice() {
                _ if doubtful => "undetermined",
                [] => "deny",
                [only] if only.get("family").is_some() => "mixed",
                _ => "allow",
            };
            assert_eq!(flow["verdict"], reached, "{example:?}: {line}");
            undetermined += u32::from(reached == "undetermined");
            tried += 1;
        }
    }
    assert!(tried > 1_000 && undetermined > 10, "{tried} were tried, {undetermined} in doubt");
}
