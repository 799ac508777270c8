//! Whole manifests: those of people who know what they do, and those of tutorials.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use portcullis_kube::{Options, Severity, Source, load};
use portcullis_lint::{Finding, lint, reader_findings};

/// What is found in each file of a folder.
fn findings(folder: &str) -> BTreeMap<String, (String, Vec<Finding>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let judge = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let input = load(&[Source::Path(path)], &Options::default());
        let mut findings = reader_findings(&input);
        findings.extend(lint(&input));
        (name, (text, findings))
    };
    files.map(judge).collect()
}

#[test]
fn manifests_that_are_meant_as_they_are_get_no_warning() {
    let quiet = findings("quiet");
    assert!(quiet.len() >= 12);
    for (name, (_, findings)) in quiet {
        let weighty: Vec<_> = findings.iter().filter(|f| f.severity != Severity::Note).collect();
        assert!(weighty.is_empty(), "{name}: {weighty:#?}");
    }
}

#[test]
fn they_get_few_notes() {
    let quiet = findings("quiet");
    let notes: usize = quiet.values().map(|(_, findings)| findings.len()).sum();
    assert!(notes <= 3 * quiet.len(), "{notes} notes in {} files", quiet.len());
}

/// The known mistakes of tutorials, a file for each.
const MISTAKES: [&str; 10] = [
    "deny-with-an-empty-to.yaml",
    "dns-by-a-pod-label-of-a-namespace.yaml",
    "dns-over-udp-only.yaml",
    "egress-that-isolates-nothing.yaml",
    "egress-without-dns.yaml",
    "end-port-without-port.yaml",
    "hand-set-name-label.yaml",
    "indentation-lost.yaml",
    "no-egress-that-stays-open.yaml",
    "two-items-for-one-peer.yaml",
];

/// The first lines of each say what is found: `# finds: 14:15 pod-label-on-namespace`.
#[test]
fn every_known_mistake_of_tutorials_is_found_and_nothing_else() {
    let mistakes = findings("mistakes");
    assert_eq!(mistakes.keys().collect::<Vec<_>>(), MISTAKES);
    for (name, (text, findings)) in mistakes {
        let expected = text.lines().find_map(|line| line.strip_prefix("# finds: ")).unwrap();
        let advice = ["unknown-namespace"];
        let found = findings.iter().filter(|f| !advice.contains(&f.rule)).map(|finding| {
            let at = finding.location.as_ref().unwrap();
            format!("{}:{} {}", at.line, at.column, finding.rule)
        });
        assert_eq!(found.collect::<Vec<_>>().join(", "), expected, "{name}");
    }
}
