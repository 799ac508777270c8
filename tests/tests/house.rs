//! The rules of the house that a compiler does not hold: which crate may depend on what, licences,
//! and files that nobody reaches.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What the engine may depend on, itself or through these. None of them does I/O, runs
/// asynchronously, or knows Kubernetes.
const OF_CORE: [&str; 5] = ["equivalent", "hashbrown", "indexmap", "ipnet", "rustc-hash"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.current_dir(root());
    command
}

fn metadata() -> Value {
    let mut command = cargo();
    // What only other systems need is in no binary of ours.
    let linux = "--filter-platform=x86_64-unknown-linux-gnu";
    command.args(["metadata", "--format-version=1", "--locked", linux]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The packages by id, and for each the ids that it needs at run time, itself included.
struct Packages {
    names: BTreeMap<String, Value>,
    needs: BTreeMap<String, Vec<String>>,
}

impl Packages {
    fn read() -> Packages {
        let metadata = metadata();
        let id = |package: &Value| package["id"].as_str().unwrap().to_owned();
        let packages = metadata["packages"].as_array().unwrap();
        let names = packages.iter().map(|p| (id(p), p.clone())).collect();
        let normal = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null())
        };
        let needs = |node: &Value| {
            let all = node["deps"].as_array().unwrap().iter().filter(normal);
            all.map(|d| d["pkg"].as_str().unwrap().to_owned()).collect()
        };
        let nodes = metadata["resolve"]["nodes"].as_array().unwrap().iter();
        Packages { names, needs: nodes.map(|node| (id(node), needs(node))).collect() }
    }

    /// Everything that a package of ours needs at run time, without itself.
    fn of(&self, name: &str) -> BTreeSet<String> {
        let start = self.names.iter().find(|(_, p)| p["name"] == name).unwrap().0;
        let mut found = BTreeSet::new();
        let mut open = vec![start.clone()];
        while let Some(id) = open.pop() {
            for needed in &self.needs[&id] {
                if found.insert(needed.clone()) {
                    open.push(needed.clone());
                }
            }
        }
        found
    }

    fn name(&self, id: &str) -> &str {
        self.names[id]["name"].as_str().unwrap()
    }
}

#[test]
fn the_engine_depends_on_nothing_but_what_is_listed() {
    // As it is built alone: in one build with the tests of others it has features that they ask for.
    let arguments = ["tree", "--locked", "-p", "portcullis-core", "-e", "normal"];
    let output = cargo().args(arguments).args(["--prefix=none", "--format={p}"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let others = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<&str> = others.collect();
    assert_eq!(names, BTreeSet::from(OF_CORE), "crates/core may need these, and needs all of them");
}

#[test]
fn kernel_and_kubernetes_are_known_in_one_crate_each() {
    let packages = Packages::read();
    let directly = |name: &str, needed: &str| {
        let id = packages.names.iter().find(|(_, p)| p["name"] == name).unwrap().0;
        packages.needs[id].iter().any(|id| packages.name(id) == needed)
    };
    for (needed, owner) in [
        ("netlink-sys", "portcullis-dataplane"),
        ("saphyr-parser", "portcullis-kube"),
        ("kube", "portcullis-kube"),
        ("k8s-openapi", "portcullis-kube"),
    ] {
        for name in [
            "portcullis-core",
            "portcullis-kube",
            "portcullis-dataplane",
            "portcullis-lab",
            "portcullis-agent",
            "portcullis",
        ] {
            assert_eq!(directly(name, needed), name == owner, "{name} and {needed}");
        }
    }
    let dataplane = packages.of("portcullis-dataplane");
    assert!(dataplane.iter().all(|id| packages.name(id) != "portcullis-kube"));
}

#[test]
fn the_cni_plugin_is_small() {
    let packages = Packages::read();
    let needed = packages.of("portcullis-cni");
    for id in &needed {
        let name = packages.name(id);
        assert!(!name.starts_with("portcullis"), "{name}: the plugin stands alone");
        assert!(!["tokio", "hyper", "kube", "netlink-sys"].contains(&name), "{name}");
    }
    assert!(needed.len() < 25, "{} crates", needed.len());
}

#[test]
fn what_is_in_the_binary_has_a_permissive_licence() {
    let packages = Packages::read();
    for id in packages.of("portcullis") {
        let package = &packages.names[&id];
        let licence = package["license"].as_str().unwrap_or("none");
        // `A OR B` and the old `A/B` are a choice; each part of an `A AND B` must do.
        let fine = |one: &str| {
            let one = one.trim_matches(|c| "() ".contains(c));
            ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "Unicode-3.0", "ISC"]
                .iter()
                .any(|good| one == *good || one == format!("{good} WITH LLVM-exception"))
        };
        let choice = |part: &str| part.split(" OR ").flat_map(|p| p.split('/')).any(fine);
        assert!(licence.split(" AND ").all(choice), "{}: {licence}", packages.name(&id));
    }
}

#[test]
fn every_dependency_of_the_binary_has_its_line_of_reasons() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = page.split_once("## Dependencies").unwrap();
    let (table, _) = table.split_once("Looked at and left").unwrap();
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let ours = package["source"].is_null() && package["name"] != "xtask";
        for dependency in package["dependencies"].as_array().unwrap().iter().filter(|_| ours) {
            let name = dependency["name"].as_str().unwrap();
            let listed = table
                .lines()
                .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
                .any(|names| names.split([',', ' ']).any(|n| n == name));
            let of_ours = name.starts_with("portcullis");
            assert!(listed || of_ours, "{name} (of {}) is not in ARCHITECTURE.md", package["name"]);
        }
    }
}

#[test]
fn every_rust_file_is_reached_from_a_root() {
    let mut lost = Vec::new();
    for folder in ["crates", "tests", "xtask", "benches"] {
        for file in rust_files(&root().join(folder)) {
            if !reached(&file) {
                lost.push(file);
            }
        }
    }
    assert!(lost.is_empty(), "no `mod` names these: {lost:?}");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// Whether a file is a root that cargo finds, or a module that its parent names.
fn reached(file: &Path) -> bool {
    let folder = file.parent().unwrap();
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let inside = |name: &str| folder.file_name().is_some_and(|f| f == name);
    if ["main", "lib", "build"].contains(&stem) {
        return true;
    }
    if stem == "mod" {
        // Shared by test roots: one of the files beside the folder names it.
        let beside = std::fs::read_dir(folder.parent().unwrap()).unwrap();
        return beside.flatten().any(|entry| names(&entry.path(), folder.file_name().unwrap()));
    }
    let is_package = folder.parent().is_some_and(|p| p.join("Cargo.toml").exists());
    if is_package && ["tests", "benches", "examples", "bin"].iter().any(|f| inside(f)) {
        return true;
    }
    let parents = ["main.rs", "lib.rs", "mod.rs"].map(|name| folder.join(name));
    let named_like_folder = folder.with_extension("rs");
    let parents = parents.iter().chain([&named_like_folder]);
    parents.into_iter().any(|parent| names(parent, stem.as_ref()))
}

/// Whether a file has a line `mod NAME;`.
fn names(file: &Path, name: &OsStr) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = format!("mod {};", name.display());
    text.lines().any(|l| l.trim_end().ends_with(&line))
}
