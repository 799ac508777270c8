//! The way from sources to an [`Input`].

use std::num::NonZero;
use std::thread;

use portcullis_core::net::IpNet;

use crate::assemble::assemble;
use crate::diagnostic::{Diagnostic, Location, Reason, Severity};
use crate::document::{self, Document};
use crate::input::Input;
use crate::object::{self, Found};
use crate::source::{self, Source, TextFile};

/// Below this many bytes a second thread costs more than it saves.
const WORTH_THREADS: usize = 1 << 20;

/// How to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The namespace of objects that name none.
    pub namespace: String,
    /// Whether directories are read with all that is below them.
    pub recursive: bool,
    /// The most pods that a workload stands for.
    pub replicas: u32,
    /// Where pods without an address will get theirs from; empty where that is not known.
    pub pod_cidrs: Vec<IpNet>,
    /// The most bytes that all sources together may have.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            namespace: "default".to_owned(),
            recursive: false,
            replicas: 2,
            pod_cidrs: Vec::new(),
            max_bytes: 256 << 20,
        }
    }
}

/// Reads manifests. Whatever is wrong is among the diagnostics; nothing is lost silently.
///
/// A workload (Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob,
/// ReplicationController) stands for as many pods as it has replicas, [`Options::replicas`] at
/// most, named `<workload>-<ordinal>`; a DaemonSet for one on each node of the input, and for one
/// if there is none. It stands for no pods if pods that it owns are in the input, or if its owner
/// is.
pub fn load(sources: &[Source], options: &Options) -> Input {
    let mut input = Input { namespace: options.namespace.clone(), ..Input::default() };
    input.files = source::read(sources, options, &mut input.diagnostics);
    let found = parse(&input.files, options);
    empty_files(&found, &mut input);
    assemble(found, options, &mut input);
    input.cluster.pod_cidrs.clone_from(&options.pod_cidrs);
    if input.read.is_empty() && input.passed_over.is_empty() && !input.has_errors() {
        let names: Vec<_> = sources.iter().map(name).collect();
        input.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            location: None,
            object: None,
            path: String::new(),
            reason: Reason::NoObjects,
            message: format!("no objects found in {}", names.join(", ")),
        });
    }
    input
}

fn name(source: &Source) -> String {
    match source {
        Source::Path(path) => path.display().to_string(),
        Source::Stdin => "<stdin>".to_owned(),
        Source::Text { name, .. } => name.clone(),
        Source::Live(snapshot) => format!("cluster/{}", snapshot.cluster),
    }
}

/// Parses and decodes every document, in order; large inputs on every core.
fn parse(files: &[TextFile], options: &Options) -> Vec<Found> {
    let documents: Vec<(usize, Document)> = files
        .iter()
        .enumerate()
        .flat_map(|(i, file)| document::split(&file.text).into_iter().map(move |d| (i, d)))
        .collect();
    let read = |documents: &[(usize, Document)]| -> Vec<Found> {
        let each = documents.iter();
        let file = |(i, d): &(usize, Document)| {
            let mut found = object::read(&files[*i].text, *i, d, &options.namespace);
            if is_kustomization(&files[*i].name) {
                found.iter_mut().for_each(Found::pass_over_kustomization);
            }
            found
        };
        each.flat_map(file).collect()
    };
    let bytes: usize = files.iter().map(|f| f.text.len()).sum();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    if bytes < WORTH_THREADS || threads == 1 {
        return read(&documents);
    }
    let read = &read;
    thread::scope(|scope| {
        let parts = documents.chunks(documents.len().div_ceil(threads).max(1));
        let running: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        let each = running.into_iter().map(|thread| thread.join());
        each.flat_map(|found| found.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Whether a file has one of the names by which kustomize finds what it is to do.
fn is_kustomization(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or_default();
    ["kustomization.yaml", "kustomization.yml", "Kustomization"].contains(&name)
}

fn empty_files(found: &[Found], input: &mut Input) {
    let mut empty = vec![true; input.files.len()];
    for found in found {
        empty[found.place.file] = false;
    }
    for (file, _) in input.files.iter().zip(empty).filter(|(_, empty)| *empty) {
        input.diagnostics.push(Diagnostic {
            severity: Severity::Note,
            location: Some(Location { file: file.name.clone(), line: 0, column: 0 }),
            object: None,
            path: String::new(),
            reason: Reason::Empty,
            message: "holds no objects".to_owned(),
        });
    }
}
