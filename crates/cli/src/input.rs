//! `-f` and its companions: manifests or a live cluster, with everything that is wrong said once.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portcullis_core::net::IpNet;
use portcullis_kube::live::{self, Access, Snapshot};
use portcullis_kube::{Diagnostic, Input, Options, Reason, Severity, Source};

use crate::kustomize;

use crate::output::plural;
use crate::style::{BOLD, DIM, ERROR, WARNING};
use crate::trouble::Trouble;

/// Patience with a program or a server before a person wants to know what goes on.
const SILENCE: Duration = Duration::from_secs(1);

/// Where the objects come from: files, or without any a live cluster.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct InputArgs {
    /// Manifest file, directory of them, or - for standard input; may be repeated; without any the
    /// live cluster of the kubeconfig is read
    #[arg(short = 'f', long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["kubeconfig", "context", "request_timeout"])]
    pub(crate) filename: Vec<PathBuf>,
    /// Directory with a kustomization: what kustomize makes of it is read; may be repeated
    #[arg(short = 'k', long, value_name = "DIR")]
    #[arg(conflicts_with_all = ["kubeconfig", "context", "request_timeout"])]
    pub(crate) kustomize: Vec<PathBuf>,
    /// Read directories with everything below them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Namespace of objects and of names that give none [default: that of the context, else
    /// default]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Most pods that one workload is expanded to
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) replicas: u32,
    /// Where pods without an address will get theirs from, so that fewer answers are undetermined;
    /// may be repeated
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: Vec<IpNet>,
    #[command(flatten)]
    pub(crate) live: LiveArgs,
}

/// What stands above the options of a live cluster in help.
const HEADING: &str = "Live cluster";

/// Which cluster is read, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LiveArgs {
    /// Kubeconfig file [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, help_heading = HEADING, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, help_heading = HEADING, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// How long the API server may take for one answer, such as 5s or 2m
    #[arg(long, help_heading = HEADING, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) request_timeout: Duration,
}

impl LiveArgs {
    /// The cluster, and how patiently it is asked.
    pub(crate) fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            timeout: self.request_timeout,
            ..Access::default()
        }
    }

    /// Lists the objects of the cluster. On a terminal it says how far it is if that takes long.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, Trouble> {
        let access = self.access();
        let (start, shows) = (Instant::now(), std::io::stderr().is_terminal());
        let mut shown = false;
        let snapshot = access.read(|objects| {
            if shows && start.elapsed() > SILENCE {
                shown = true;
                eprint!("\rreading the cluster: {objects} objects");
                // A progress that cannot be shown is no reason to stop.
                let _ = std::io::stderr().flush();
            }
        });
        if shown {
            eprint!("\r\x1b[K");
        }
        let asked_for = self.kubeconfig.is_some() || self.context.is_some();
        match snapshot {
            Ok(snapshot) => Ok(snapshot),
            Err(live::Error::NoCluster { looked }) if !asked_for => Err(Trouble::NoInput(looked)),
            Err(error) => Err(Trouble::Live(error)),
        }
    }
}

impl InputArgs {
    /// Reads everything. What is wrong is in the result's diagnostics.
    pub(crate) fn read(&self) -> Result<Input, Trouble> {
        let sources = self.sources()?;
        let of_context = sources.iter().find_map(|source| match source {
            Source::Live(snapshot) => Some(snapshot.namespace.clone()),
            _ => None,
        });
        Ok(portcullis_kube::load(&sources, &self.options(of_context)))
    }

    /// How it is read, given the namespace of the context of a live cluster.
    pub(crate) fn options(&self, of_context: Option<String>) -> Options {
        let defaults = Options::default();
        Options {
            namespace: self.namespace.clone().or(of_context).unwrap_or(defaults.namespace),
            recursive: self.recursive,
            replicas: self.replicas,
            pod_cidrs: self.pod_cidr.clone(),
            ..defaults
        }
    }

    fn sources(&self) -> Result<Vec<Source>, Trouble> {
        if self.filename.is_empty() && self.kustomize.is_empty() {
            return Ok(vec![Source::Live(self.live.snapshot()?)]);
        }
        sources(&self.filename, &self.kustomize)
    }

    /// Whether the manifests come from standard input.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.filename.iter().any(|path| is_stdin(path))
    }

    /// Whether it is files alone, which can be written.
    pub(crate) fn is_files(&self) -> bool {
        !self.filename.is_empty() && self.kustomize.is_empty() && !self.reads_stdin()
    }

    /// Reads everything, and goes on only if there are no errors: an answer that leaves out a
    /// policy is worse than none. Errors, warnings, and notes of facts that are missing go to
    /// stderr.
    pub(crate) fn read_sound(&self) -> Result<Input, Trouble> {
        sound(self.read()?)
    }
}

/// So many namespaces without an object are told one by one: answers name those that matter.
const FEW: usize = 2;

/// An input that may be answered from: see [`InputArgs::read_sound`].
pub(crate) fn sound(input: Input) -> Result<Input, Trouble> {
    let missing = |reason| matches!(reason, Reason::UnknownNamespace | Reason::NotPermitted);
    let tells = |d: &&Diagnostic| d.severity != Severity::Note || missing(d.reason);
    let mut unknown = 0;
    for diagnostic in input.diagnostics.iter().filter(tells) {
        unknown += usize::from(diagnostic.reason == Reason::UnknownNamespace);
        if diagnostic.reason != Reason::UnknownNamespace || unknown <= FEW {
            anstream::eprintln!("{}", line(diagnostic));
        }
    }
    if unknown > FEW {
        let more = plural(unknown - FEW, "more namespace");
        anstream::eprintln!("{DIM}note{DIM:#}: and {more} likewise; `portcullis check` shows all");
    }
    match input.diagnostics.iter().filter(|d| d.severity == Severity::Error).count() {
        0 => Ok(input),
        1 => Err(Trouble::Input("an error".to_owned())),
        n => Err(Trouble::Input(format!("{n} errors"))),
    }
}

/// A time as kubectl takes it: `30s`, `2m`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => match text.strip_suffix('m') {
            Some(number) => (number, 60_000),
            None => (text.strip_suffix('s').unwrap_or(text), 1000),
        },
    };
    let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    let millis = millis.filter(|n| *n > 0 && *n <= 24 * 3_600_000);
    millis.map(Duration::from_millis).ok_or_else(|| "write a time such as 30s or 2m".to_owned())
}

/// What `-f` and `-k` stand for.
pub(crate) fn sources(files: &[PathBuf], kustomize: &[PathBuf]) -> Result<Vec<Source>, Trouble> {
    if files.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Trouble::StdinTwice);
    }
    let files = files.iter().cloned().map(|path| Ok(source(path)));
    files.chain(kustomize.iter().map(|folder| kustomize::build(folder))).collect()
}

/// What a path of the command line stands for.
pub(crate) fn source(path: PathBuf) -> Source {
    if is_stdin(&path) { Source::Stdin } else { Source::Path(path) }
}

/// Whether a path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// One finding in one line, as compilers write it: place, severity, object, message.
pub(crate) fn line(diagnostic: &Diagnostic) -> String {
    let style = match diagnostic.severity {
        Severity::Error => ERROR,
        Severity::Warning => WARNING,
        Severity::Note => DIM,
    };
    let place = diagnostic.location.as_ref().map_or(String::new(), |l| format!("{l}: "));
    let object = diagnostic.object.as_ref().map_or(String::new(), |o| format!("{o}: "));
    let (severity, message) = (diagnostic.severity, &diagnostic.message);
    format!("{BOLD}{place}{BOLD:#}{style}{severity}{style:#}: {object}{message}")
}
