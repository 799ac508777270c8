//! `portcullis agent install-cni`: the CNI plugin into a node's network configuration, and out again.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use portcullis_cni::conflist::{self, Change, Settings};
use portcullis_cni::{ATTACHMENTS, PLUGIN, SOCKET};

use crate::output::print;
use crate::trouble::Trouble;

/// Chain the CNI plugin into this node's network configuration
#[derive(Debug, clap::Args)]
#[command(after_help = "The plugin makes a pod start only when its policies are in force: \
                        docs/cni.md. Without it nothing but the agent is needed.")]
pub(crate) struct InstallCni {
    /// Directory with the network configuration
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIRECTORY")]
    conf_dir: PathBuf,
    /// Directory with the programs of plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIRECTORY")]
    bin_dir: PathBuf,
    /// The plugin's program; without it the portcullis-cni beside this program
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// What becomes of a pod whose policies cannot be put in force before it starts
    #[arg(long, value_enum, default_value_t = WhenDown::Closed, value_name = "WHAT")]
    when_agent_is_down: WhenDown,
    /// Unix socket of the agent
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Directory in which the plugin keeps the addresses of this node's pods
    #[arg(long, default_value = ATTACHMENTS, value_name = "DIRECTORY")]
    attachments: PathBuf,
    /// Take the plugin out of the configuration again
    #[arg(long, conflicts_with_all = ["watch", "agent_user"])]
    uninstall: bool,
    /// Go on, and chain it again when somebody has written the configuration anew
    #[arg(long)]
    watch: bool,
    /// Give the directory of the socket to this user, who the agent runs as
    #[arg(long, value_name = "UID")]
    agent_user: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WhenDown {
    /// It does not start
    Refuse,
    /// It starts if the kernel lets nothing to and from it meanwhile
    Closed,
    /// It starts
    Open,
}

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(5);

impl InstallCni {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        if self.uninstall {
            return uninstall(&self.conf_dir, &self.bin_dir);
        }
        if let Some(user) = self.agent_user {
            give(&self.socket, user)?;
        }
        let first = self.install();
        if !self.watch {
            print(&first?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut last = None;
        let mut look = |done: Result<String, Trouble>| {
            let said = done.unwrap_or_else(|trouble| format!("{trouble}\n"));
            // To go on without output is better than to stop.
            if last.as_ref() != Some(&said) {
                let _ = print(&said);
            }
            last = Some(said);
        };
        look(first);
        portcullis_agent::every(LOOK, || look(self.install()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn install(&self) -> Result<String, Trouble> {
        let plugin = match &self.plugin {
            Some(plugin) => plugin.clone(),
            None => std::env::current_exe()
                .map_err(|source| io("cannot find the plugin's program", source))?
                .with_file_name(PLUGIN),
        };
        let unless = |path: &Path, default: &str| (path != default).then(|| path.to_owned());
        let settings = Settings {
            socket: unless(&self.socket, SOCKET),
            attachments: unless(&self.attachments, ATTACHMENTS),
            when_agent_is_down: match self.when_agent_is_down {
                WhenDown::Refuse => Some("refuse".to_owned()),
                WhenDown::Closed => None,
                WhenDown::Open => Some("open".to_owned()),
            },
        };
        // The program before its name is in the configuration: from then on runtimes start it.
        conflist::copy_program(&plugin, &self.bin_dir)?;
        Ok(words(&conflist::install(&self.conf_dir, &settings)?))
    }
}

fn uninstall(conf_dir: &Path, bin_dir: &Path) -> Result<ExitCode, Trouble> {
    let changes = conflist::uninstall(conf_dir)?;
    let mut text: String = changes.iter().map(words).collect();
    if changes.is_empty() {
        text = format!("{PLUGIN} is in no configuration of {}\n", conf_dir.display());
    }
    let program = bin_dir.join(PLUGIN);
    if program.exists() {
        text += &format!(
            "left {}: pods that were added with it are deleted with it; remove it when they are \
             gone\n",
            program.display()
        );
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn words(change: &Change) -> String {
    match change {
        Change::Chained(path) => format!("chained {PLUGIN} into {}\n", path.display()),
        Change::AsItWas(path) => format!("{PLUGIN} is in {}\n", path.display()),
        Change::TakenOut(path) => format!("took {PLUGIN} out of {}\n", path.display()),
        Change::PutBack(path) => format!("put {} back\n", path.display()),
    }
}

/// Makes the directory of the socket one that this user can make the socket in.
fn give(socket: &Path, user: u32) -> Result<(), Trouble> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    let error = |source| io(&format!("cannot give {} to user {user}", folder.display()), source);
    fs::create_dir_all(folder).map_err(error)?;
    if fs::metadata(folder).map_err(error)?.uid() != user {
        chown(folder, Some(user), Some(user)).map_err(error)?;
    }
    Ok(())
}

fn io(what: &str, source: std::io::Error) -> Trouble {
    Trouble::Io { what: what.to_owned(), source }
}
