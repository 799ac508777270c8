//! `portcullis agent`: a live cluster's policies, enforced on this node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use portcullis_agent::{Desired, Logging, Options, desired_once};
use portcullis_cni::{Attachments, InForce};
use portcullis_core::model::LogLevel;
use portcullis_core::net::IpNet;
use portcullis_dataplane::plan::{TABLE, plan, render};
use portcullis_dataplane::{Allowed, Connections, Dataplane, Nftables, Sources};
use portcullis_kube::live::Access;

use crate::install_cni::InstallCni;
use crate::output::print;
use crate::trouble::Trouble;

/// Enforce the policies of a live cluster on this node
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    after_help = "It runs until SIGTERM or Ctrl-C. What is in force then stays in force: only \
                        `portcullis agent cleanup` ends it."
)]
pub(crate) struct Agent {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    cluster: Option<Cluster>,
    /// Address that /healthz, /readyz and /metrics are served at
    #[arg(long, default_value = "127.0.0.1:9464", value_name = "IP:PORT")]
    metrics_address: SocketAddr,
    /// Address of loopback at which people are answered what goes on, who come by a port-forward;
    /// nothing can be changed there [default: none]
    #[arg(long, value_name = "IP:PORT")]
    api_address: Option<SocketAddr>,
    /// What becomes of connections that are open when a state comes that does not allow them
    #[arg(long, value_enum, default_value_t = Established::Cut)]
    established: Established,
    /// What becomes of packets whose source is not an address of the pod that sends them
    #[arg(long, value_enum, default_value_t = Spoofing::Drop)]
    spoofing: Spoofing,
    /// Write Events on pods whose connections are refused, one in five minutes for each pod and
    /// direction
    #[arg(long)]
    events: bool,
    /// Form of the log, which goes to standard error: a line for each thing
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Log {
    /// Those that are refused
    Denied,
    /// Those that are allowed too
    All,
    /// None
    None,
}

/// Where others of this node meet the agent.
#[derive(Debug, Clone, clap::Args)]
struct Socket {
    /// Unix socket that the CNI plugin asks at
    #[arg(long, default_value = portcullis_cni::SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Directory in which the CNI plugin keeps the addresses of this node's pods
    #[arg(long, default_value = portcullis_cni::ATTACHMENTS, value_name = "DIRECTORY")]
    attachments: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what this node should enforce, and how what is in the kernel differs
    #[command(after_help = "Exits 1 if anything differs.")]
    Dump(Dump),
    /// End all enforcement on this node: remove what the agent left in the kernel, and nothing else
    Cleanup {
        /// Unix socket of the agent; what the agent left beside it is removed too
        #[arg(long, default_value = portcullis_cni::SOCKET, value_name = "PATH")]
        socket: PathBuf,
    },
    InstallCni(InstallCni),
    /// Give the capability NET_ADMIN to whoever runs a program, so that the agent need not be root
    #[command(
        after_help = "That is what setcap cap_net_admin+p does, where there is no setcap. It is in \
                            effect as far as whoever starts the program lets it."
    )]
    Permit {
        /// The file of the program: that of portcullis
        #[arg(value_name = "FILE")]
        program: PathBuf,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Dump {
    #[command(flatten)]
    cluster: Cluster,
    /// Directory in which the CNI plugin keeps the addresses of this node's pods
    #[arg(long, default_value = portcullis_cni::ATTACHMENTS, value_name = "DIRECTORY")]
    attachments: PathBuf,
}

/// The node and its cluster.
#[derive(Debug, Clone, clap::Args)]
struct Cluster {
    /// Name of this node in the cluster
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: String,
    /// Kubeconfig file; without it $KUBECONFIG, ~/.kube/config, or the service account of this pod
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// What becomes of an address of this node's pods before its pod is known
    #[arg(long, value_enum, default_value_t = Unprogrammed::Closed)]
    unprogrammed: Unprogrammed,
    /// Where this node's pods get their addresses from, instead of the podCIDRs of its Node object
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,
    // All of them here: an optional group has to know its members, which are not those of a group in it.
    /// Which connections are logged, of pods whose namespace has no annotation portcullis.dev/log
    #[arg(long, value_enum, default_value_t = Log::Denied)]
    log: Log,
    /// NFLOG group by which the kernel tells the agent of packets: one that nobody else listens to
    #[arg(long, default_value_t = Logging::default().group, value_name = "NUMBER")]
    log_group: u16,
    /// Most packets a second that the kernel tells of, in each direction; others are counted
    #[arg(
        long,
        default_value_t = Logging::default().rate,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    log_rate: u32,
    /// What becomes of what policies refuse
    #[arg(long, value_enum, default_value_t = Mode::Enforce)]
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// It is refused, unless the policies are in audit by an annotation
    Enforce,
    /// Nothing at all is refused: it passes and is reported
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Unprogrammed {
    /// It is closed both ways
    Closed,
    /// It is open
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Established {
    /// They are cut: TCP is reset at both ends, of others no packet passes
    Cut,
    /// They go on
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Spoofing {
    /// They are dropped
    Drop,
    /// They pass
    Allow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// key=value
    Text,
    /// JSON
    Json,
}

/// How long `dump` waits for the cluster.
const PATIENCE: Duration = Duration::from_secs(60);

impl Cluster {
    fn mode(&self) -> portcullis_agent::Mode {
        match self.mode {
            Mode::Enforce => portcullis_agent::Mode::Enforce,
            Mode::Audit => portcullis_agent::Mode::Audit,
        }
    }

    fn logging(&self) -> Logging {
        let level = match self.log {
            Log::Denied => LogLevel::Denied,
            Log::All => LogLevel::All,
            Log::None => LogLevel::None,
        };
        Logging { level, group: self.log_group, rate: self.log_rate }
    }

    fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            ..Access::default()
        }
    }

    fn unprogrammed(&self) -> portcullis_agent::Unprogrammed {
        match self.unprogrammed {
            Unprogrammed::Closed => portcullis_agent::Unprogrammed::Closed(self.pod_cidrs.clone()),
            Unprogrammed::Open => portcullis_agent::Unprogrammed::Open,
        }
    }
}

impl Agent {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        match (self.command, self.cluster) {
            (Some(Command::Dump(dump)), _) => dump.run(),
            (Some(Command::InstallCni(install)), _) => install.run(),
            (Some(Command::Permit { program }), _) => {
                portcullis_agent::permit(&program)?;
                Ok(ExitCode::SUCCESS)
            }
            (Some(Command::Cleanup { socket }), _) => {
                // First: whoever reads it must not rely on what is about to go.
                InForce::remove(&socket).map_err(|source| Trouble::Io {
                    what: format!("cannot remove {}", InForce::path(&socket).display()),
                    source,
                })?;
                portcullis_agent::take_net_admin()?;
                Nftables::open()?.remove()?;
                Connections::open()?.remove()?;
                Sources::open()?.remove()?;
                Allowed::cleanup()?;
                print("nothing is enforced on this node any more\n")?;
                Ok(ExitCode::SUCCESS)
            }
            (None, Some(cluster)) => {
                portcullis_agent::take_net_admin()?;
                portcullis_agent::log(self.log_format == LogFormat::Json);
                // What an earlier agent guarded and this one is not to guard.
                if self.established == Established::Keep {
                    Connections::open()?.remove()?;
                }
                if self.spoofing == Spoofing::Allow {
                    Sources::open()?.remove()?;
                }
                let Socket { socket, attachments } = self.socket;
                let options = Options {
                    access: cluster.access(),
                    unprogrammed: cluster.unprogrammed(),
                    log: cluster.logging(),
                    events: self.events,
                    mode: cluster.mode(),
                    allow_spoofing: self.spoofing == Spoofing::Allow,
                    keep_established: self.established == Established::Keep,
                    node: cluster.node,
                    metrics_address: Some(self.metrics_address),
                    api_address: self.api_address,
                    socket: Some(portcullis_agent::Socket { path: socket, attachments }),
                };
                portcullis_agent::run(options, Nftables::open()?)?;
                Ok(ExitCode::SUCCESS)
            }
            // Clap asks for the node where there is no command.
            (None, None) => Ok(ExitCode::from(2)),
        }
    }
}

impl Dump {
    fn run(&self) -> Result<ExitCode, Trouble> {
        let Dump { cluster, attachments } = self;
        let known = Attachments::of(attachments).read().map_err(|source| Trouble::Io {
            what: format!("cannot read {}", attachments.display()),
            source,
        })?;
        let Desired { state, policies, .. } = desired_once(
            &cluster.access(),
            &cluster.node,
            &cluster.unprogrammed(),
            cluster.mode(),
            cluster.logging(),
            &known,
            PATIENCE,
        )?;
        portcullis_agent::take_net_admin()?;
        let differences = Nftables::open()?.compare(&state)?;
        let mut text = format!(
            "# What node {} should enforce: NetworkPolicies: {policies}, addresses of pods: {}. In the\n\
         # kernel, names of chains and sets end with a number: nft list table inet {TABLE}\n{}\n",
            cluster.node,
            state.endpoints.len(),
            render(&plan(&state)?),
        );
        match differences.as_slice() {
            [] => text.push_str("# The kernel has exactly this.\n"),
            differences => {
                text.push_str("# The kernel has the same but for this:\n");
                differences
                    .iter()
                    .for_each(|difference| text.push_str(&format!("# {difference}\n")));
            }
        }
        print(&text)?;
        Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
