//! The command line: what can be asked, and the one place that hands it on.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::output::print;
use crate::trouble::Trouble;
use crate::{agent, assert, check, diff, eval, graph, lab, observe, reach, status, wait, why};

/// Network policy for Kubernetes: understood, enforced and proven.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 fine, 1 findings or a difference, \
                        2 the command could not do its work.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Is it valid, as the API server would say, and is it what was meant?
    Check(check::Check),
    /// Is a connection allowed or refused, and by which policy, rule, peer and port?
    Why(why::Why),
    /// The verdicts of many connections: JSON lines in, JSON lines out
    Eval(eval::Eval),
    /// Who can reach whom, on what?
    Reach(reach::Reach),
    /// Who can reach whom, as a picture
    Graph(graph::Graph),
    /// Which connections does a change open and close?
    Diff(diff::Diff),
    /// Do the policies allow and refuse what they are meant to? Tests for review and for CI
    Test(assert::Assert),
    /// Real packets without a cluster: pods as network namespaces, no root needed
    Lab {
        #[command(subcommand)]
        command: lab::Lab,
    },
    /// Enforce the policies of a live cluster on this node
    Agent(agent::Agent),
    /// Which connections are refused and allowed, and why; which rules are used
    Observe(observe::Observe),
    /// Which policies are in force on which nodes, and what lags
    Status(status::Status),
    /// Wait until policies are in force on every node that runs a pod that they select
    Wait(wait::Wait),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; it must exist
        directory: std::path::PathBuf,
    },
}

/// Reads the arguments of this process.
pub(crate) fn parse() -> Result<Command, Trouble> {
    Ok(Arguments::try_parse()?.command)
}

impl Command {
    /// Does what was asked.
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        match self {
            Command::Check(check) => check.run(),
            Command::Why(why) => why.run(),
            Command::Eval(eval) => eval.run(),
            Command::Reach(reach) => reach.run(),
            Command::Graph(graph) => graph.run(),
            Command::Diff(diff) => diff.run(),
            Command::Test(test) => test.run(),
            Command::Lab { command } => command.run(),
            Command::Agent(agent) => agent.run(),
            Command::Observe(observe) => observe.run(),
            Command::Status(status) => status.run(),
            Command::Wait(wait) => wait.run(),
            Command::Completions { shell } => {
                let (mut command, mut script) = (Arguments::command(), Vec::new());
                clap_complete::generate(shell, &mut command, "portcullis", &mut script);
                print(&String::from_utf8_lossy(&script))?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Man { directory } => {
                let what = format!("cannot write manual pages to {}", directory.display());
                clap_mangen::generate_to(Arguments::command(), &directory)
                    .map_err(|source| Trouble::Io { what, source })?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
