//! Many connections, which are judged in blocks and on all cores.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::{path::Path, thread};

fn eval(flows: String) -> Output {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/three-tier");
    let mut eval = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["eval", "--flows", "-", "-f"])
        .arg(example)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = eval.stdin.take().unwrap();
    let writing = thread::spawn(move || stdin.write_all(flows.as_bytes()).unwrap());
    let output = eval.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

#[test]
fn many_answers_come_in_the_order_of_their_questions_up_to_one_that_is_wrong() {
    let mut flows = String::new();
    for port in 1..=60_000 {
        writeln!(flows, r#"{{"from":"shop/web","to":"shop/db","port":{port}}}"#).unwrap();
    }
    assert!(flows.len() > 2 << 20, "more than two blocks");
    flows.push_str("no connection\n{\"from\":\"shop/web\",\"to\":\"shop/db\",\"port\":1}\n");
    let output = eval(flows);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("<stdin>:60001: expected a JSON object"), "{errors}");
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers.lines().count(), 60_000);
    for (answer, port) in answers.lines().zip(1..) {
        let start = format!(r#"{{"from":"shop/web","to":"shop/db","port":{port},"verdict":""#);
        assert!(answer.starts_with(&start), "{answer}");
    }
}

#[test]
fn a_list_is_not_a_connection() {
    let output = eval("[\"shop/web\",\"shop/db\",80,\"TCP\"]\n".to_owned());
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}
