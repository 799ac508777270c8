//! Why a command could not do its work. Reported on stderr; the exit code is 2.

use std::io;
use std::process::ExitCode;

use crate::ends::NotAnEnd;
use crate::style::{BOLD, ERROR};

/// A reason to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The arguments do not parse, or ask for help: clap has the words for both.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The input has errors that were already printed.
    #[error("the input has {0}: nothing was answered; `portcullis check` shows all of it")]
    Input(String),
    /// Errors in files of tests that were already printed.
    #[error("the tests have {0}: nothing was told of any of them")]
    Tests(String),
    /// No test is left, by the pattern that was given.
    #[error("no test has {0:?} in its name: nothing was tested")]
    NoTests(String),
    /// No `-f`, and no cluster: the first thing that somebody new types.
    #[error(
        "nothing to read: -f is not given, and there is no cluster: {0}\n  \
         manifests     -f FILE, -f DIRECTORY -R, or -k DIRECTORY with a kustomization\n  \
         a Helm chart  helm template CHART | portcullis ... -f -\n  \
         a cluster     --kubeconfig FILE, and --context NAME if it has several"
    )]
    NoInput(String),
    /// A live cluster that cannot be read.
    #[error(transparent)]
    Live(#[from] portcullis_kube::live::Error),
    /// A policy that is not in the cluster.
    #[error("the namespace {namespace} has no NetworkPolicy {name:?}")]
    NoPolicy { namespace: String, name: String },
    /// The same for one that waits.
    #[error(
        "the manifests have {0}: nothing was waited for; expected manifests that the API server takes: \
         mend and apply them (`portcullis check` shows all of it), or give names, policy/NAME"
    )]
    NotWaited(String),
    /// Waiting for a name that nobody has would go on until the time is over.
    #[error(
        "{place}expected metadata.name, found generateName: {prefix}: the API server makes the name, so \
         no manifest tells it; wait for policy/NAME with the name that `kubectl create` printed"
    )]
    NamedByServer { place: String, prefix: String },
    /// Waiting for nothing would be mistaken for success.
    #[error("there is no NetworkPolicy in {0}: nothing to wait for")]
    NoPolicies(String),
    /// `-k` without the program for it.
    #[error(
        "-k needs kustomize or kubectl, and neither is installed: install one, or pass what \
         `kustomize build {0}` prints elsewhere with -f -"
    )]
    NoKustomize(String),
    /// `-k`, and the program for it says no.
    #[error("{0}")]
    Kustomize(String),
    /// More than one thing is to be read from it.
    #[error("standard input (-) can be read once: give a file for the other")]
    StdinTwice,
    /// `--explain` of what is no rule.
    #[error("no rule {id:?}; the rules are {known}")]
    UnknownRule { id: String, known: String },
    /// What is wrong with the configuration, a line for each.
    #[error("the configuration cannot be read:\n{0}")]
    Config(String),
    /// There is no file to write.
    #[error("--fix cannot write to standard input: give files, or print the patch with --diff")]
    FixStdin,
    /// A lab without a pod would agree with anything.
    #[error("the input has no pod that a connection could be tried with: nothing was proven")]
    NothingToTry,
    /// A question about pods, to an input of policies alone.
    #[error(
        "no pod in the input, and so nothing that policies decide about: pass the workloads beside \
         the policies{0}"
    )]
    NoPods(&'static str),
    /// Nobody reads markup.
    #[error(
        "a picture is no text to read: write it to a file, with `> picture.svg` or \
         --output-file, or choose -o dot or -o mermaid"
    )]
    PictureOnTerminal,
    /// The ends of a question.
    #[error(transparent)]
    End(#[from] NotAnEnd),
    /// A line of the flows that `eval` was given.
    #[error("{place}: {why}")]
    Flow { place: String, why: String },
    /// A picture of an answer that has none; the formats that it has.
    #[error("{0} has no picture: take -o {1}")]
    NoPicture(&'static str, &'static str),
    /// A revision, or what is to be read of it.
    #[error("{0}")]
    Git(String),
    /// A file of ours, or output.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// An option whose value means nothing.
    #[error("{option} {found:?} is not {wanted}")]
    Option { option: &'static str, found: String, wanted: &'static str },
    /// An agent that cannot be asked, or breaks off.
    #[error("the agent {name}: {why}")]
    NoAgent { name: String, why: String },
    /// A cluster without any.
    #[error(
        "the cluster has no agent of portcullis; --socket asks one on this machine, and --lab those \
         of a lab"
    )]
    NoAgents,
    /// The lab.
    #[error(transparent)]
    Lab(#[from] portcullis_lab::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] portcullis_agent::Error),
    /// The network configuration of a node.
    #[error(transparent)]
    Conflist(#[from] portcullis_cni::conflist::Error),
    /// The kernel.
    #[error(transparent)]
    Dataplane(#[from] portcullis_dataplane::Error),
}

impl Trouble {
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Trouble::Arguments(error) => {
                let code = if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
                // Nothing is left to do where even this cannot be printed.
                let _ = error.print();
                code
            }
            // Whoever reads the output has enough of it: `portcullis … | head`.
            Trouble::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            other => {
                anstream::eprintln!("{ERROR}error{ERROR:#}{BOLD}:{BOLD:#} {other}");
                ExitCode::from(2)
            }
        }
    }

    /// An error of writing what was asked for.
    pub(crate) fn output(source: io::Error) -> Trouble {
        Trouble::Io { what: "cannot write the output".to_owned(), source }
    }
}
