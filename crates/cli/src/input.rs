//! `-f` and its companions: manifests to a cluster, with everything that is wrong said once.

use std::path::{Path, PathBuf};

use portcullis_kube::{Diagnostic, Input, Options, Reason, Severity, Source};

use crate::style::{BOLD, DIM, ERROR, WARNING};
use crate::trouble::Trouble;

/// Where the objects come from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct InputArgs {
    /// Manifest file, directory of them, or - for standard input; may be repeated
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
    /// Read directories with everything below them
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Namespace of objects and of names that give none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Most pods that one workload is expanded to
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) replicas: u32,
}

impl InputArgs {
    /// Reads everything. What is wrong is in the result's diagnostics.
    pub(crate) fn read(&self) -> Result<Input, Trouble> {
        if self.filename.is_empty() {
            return Err(Trouble::NoInput);
        }
        if self.filename.iter().filter(|path| is_stdin(path)).count() > 1 {
            return Err(Trouble::StdinTwice);
        }
        let source = |path: &PathBuf| {
            if is_stdin(path) { Source::Stdin } else { Source::Path(path.clone()) }
        };
        let sources: Vec<Source> = self.filename.iter().map(source).collect();
        Ok(portcullis_kube::load(&sources, &self.options()))
    }

    /// How it is read.
    pub(crate) fn options(&self) -> Options {
        Options {
            namespace: self.namespace.clone(),
            recursive: self.recursive,
            replicas: self.replicas,
            ..Options::default()
        }
    }

    /// Whether the manifests come from standard input.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.filename.iter().any(|path| is_stdin(path))
    }

    /// Reads everything, and goes on only if there are no errors: an answer that leaves out a
    /// policy is worse than none. Errors, warnings, and notes of facts that are missing go to
    /// stderr.
    pub(crate) fn read_sound(&self) -> Result<Input, Trouble> {
        let input = self.read()?;
        let count = |severity| input.diagnostics.iter().filter(|d| d.severity == severity).count();
        let tells =
            |d: &&Diagnostic| d.severity != Severity::Note || d.reason == Reason::UnknownNamespace;
        for diagnostic in input.diagnostics.iter().filter(tells) {
            anstream::eprintln!("{}", line(diagnostic));
        }
        match count(Severity::Error) {
            0 => Ok(input),
            1 => Err(Trouble::Input("an error".to_owned())),
            n => Err(Trouble::Input(format!("{n} errors"))),
        }
    }
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
