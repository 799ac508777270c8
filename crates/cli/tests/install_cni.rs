//! `portcullis agent install-cni` on the folders of a node.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_tests::folder::Folder;
use portcullis_tests::process::{LIMIT, Lines, Running};

const LIST: &str = "{\n  \"name\": \"cbr0\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    \
                    {\"type\": \"flannel\"}\n  ]\n}\n";

fn node(name: &str) -> Folder {
    let node = Folder::new(&format!("install-{name}"));
    for folder in ["conf", "bin"] {
        fs::create_dir_all(node.join(folder)).unwrap();
    }
    fs::write(node.join("plugin"), "a program").unwrap();
    node
}

fn install(node: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["agent", "install-cni", "--conf-dir"]).arg(node.join("conf"));
    command.arg("--bin-dir").arg(node.join("bin")).arg("--plugin").arg(node.join("plugin"));
    command.args(more);
    command
}

/// Exit code, and what was said.
fn said(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text.into_owned())
}

#[test]
fn it_is_chained_and_taken_out_and_the_configuration_is_as_it_was() {
    let node = node("once");
    let list = node.join("conf/10-flannel.conflist");
    fs::write(&list, LIST).unwrap();
    let (code, text) = said(install(&node, &["--when-agent-is-down=refuse"]));
    assert_eq!((code, text), (0, format!("chained portcullis-cni into {}\n", list.display())));
    let ours = "{\"type\":\"portcullis-cni\",\"whenAgentIsDown\":\"refuse\"}";
    assert!(fs::read_to_string(&list).unwrap().contains(ours));
    assert_eq!(fs::read_to_string(node.join("bin/portcullis-cni")).unwrap(), "a program");

    let (code, text) = said(install(&node, &["--uninstall"]));
    let program = node.join("bin/portcullis-cni");
    let wanted = format!(
        "took portcullis-cni out of {}\nleft {}: pods that were added with it are deleted with \
         it; remove it when they are gone\n",
        list.display(),
        program.display()
    );
    assert_eq!((code, text), (0, wanted));
    assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
}

#[test]
fn without_a_configuration_it_says_what_to_do() {
    let node = node("nothing");
    let (code, text) = said(install(&node, &[]));
    assert_eq!(code, 2);
    assert!(text.contains("install the cluster's CNI first"), "{text}");
    fs::remove_file(node.join("plugin")).unwrap();
    let (code, text) = said(install(&node, &[]));
    assert_eq!(code, 2);
    assert!(text.contains("plugin: No such file"), "{text}");
}

#[test]
fn what_is_written_anew_is_chained_again() {
    let node = node("watch");
    let mut command = install(&node, &["--watch"]);
    let mut watching = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = Lines::of(watching.0.stdout.take().unwrap());
    assert!(lines.until("").contains("has no network configuration"));
    let list = node.join("conf/10-flannel.conflist");
    for _ in 0..2 {
        // As the CNI's own installer does.
        fs::write(&list, LIST).unwrap();
        let begin = Instant::now();
        while !fs::read_to_string(&list).unwrap().contains("portcullis-cni") {
            assert!(begin.elapsed() < LIMIT, "it is not chained again");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert!(lines.until("").starts_with("chained portcullis-cni into"));
}
