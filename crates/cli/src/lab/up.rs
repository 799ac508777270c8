//! `portcullis lab up`: a cluster that kubectl can talk to.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_lab::{Cluster, Control, Error, Event, Options};
use serde_json::{Value, json};

use crate::lab::{Asked, LabArgs, Name, Page, Request};
use crate::output::{plural, print};
use crate::style::{BOLD, DIM};
use crate::trouble::Trouble;

/// Bring a cluster up that kubectl can talk to, and keep it until Ctrl-C or `lab down`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without -f the cluster is empty. Manifests are applied when it is up; what \
                        kubectl does later counts as well.\n\n\
                        Example:\n  portcullis lab up --nodes 2 --write-kubeconfig lab.kubeconfig"
)]
pub(crate) struct Up {
    #[command(flatten)]
    lab: LabArgs,
    #[command(flatten)]
    name: Name,
    /// Keep the state of the API in this directory, and go on from what is there; kubeconfigs of
    /// before lead there again
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Have the agents write Events on pods of which connections were refused
    #[arg(long)]
    events: bool,
    /// File that tells kubectl how to reach the cluster, written when all is ready; it goes with the
    /// lab
    #[arg(long, value_name = "FILE", default_value = "portcullis.kubeconfig")]
    write_kubeconfig: PathBuf,
    /// Port of the API server on 127.0.0.1 [default: any that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
}

impl Up {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let manifests = self.manifests()?;
        let kubeconfig = std::path::absolute(&self.write_kubeconfig).map_err(|source| {
            Trouble::Io { what: "cannot tell where the kubeconfig goes".to_owned(), source }
        })?;
        // What would be in vain is not begun.
        portcullis_lab::kubeconfig_can_be_written(&kubeconfig).map_err(Error::from)?;
        let mut control = Control::bind(&self.name.lab_name)?;
        // Before the lab's own network is entered: kubectl is outside of it.
        let listener = self.listen()?;
        let sockets = portcullis_lab::make_sockets(&self.name.lab_name)?;
        portcullis_lab::enter()?;
        let options = Options { events: self.events, ..self.lab.options() };
        let mut cluster = Cluster::up(listener, &options, &sockets, self.state.as_deref())?;
        if let Some(file) = self.port_file() {
            fs::write(&file, format!("{}\n", cluster.server().address().port())).map_err(
                |source| Trouble::Io { what: format!("cannot write {}", file.display()), source },
            )?;
        }
        apply(&cluster, &manifests)?;
        cluster.settle()?;
        cluster.server().write_kubeconfig(&kubeconfig).map_err(Error::from)?;
        print(&self.welcome(&cluster, &kubeconfig))?;
        let ended = serve(&mut cluster, &mut control);
        drop(cluster);
        // It leads nowhere any more. That it is gone already is fine.
        let _ = fs::remove_file(&kubeconfig);
        let _ = fs::remove_dir_all(&sockets);
        ended?;
        Ok(ExitCode::SUCCESS)
    }

    /// Listens where it is asked to. Without such a wish it is where the API of a state was the last
    /// time, if that is free, so that kubeconfigs of before lead there.
    fn listen(&self) -> Result<TcpListener, Trouble> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let before = self.port_file().and_then(|file| fs::read_to_string(file).ok());
        let before = before.and_then(|text| text.trim().parse().ok()).filter(|_| self.port == 0);
        if let Some(listener) = before.and_then(|port: u16| bind(port).ok()) {
            return Ok(listener);
        }
        let what = format!("cannot listen on 127.0.0.1:{}", self.port);
        bind(self.port).map_err(|source| Trouble::Io { what, source })
    }

    /// Where the port of a state is kept.
    fn port_file(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|state| state.join("port"))
    }

    /// The objects of the input, as they were written; none without an input.
    fn manifests(&self) -> Result<Vec<Value>, Trouble> {
        let input = &self.lab.input;
        if input.filename.is_empty() && input.kustomize.is_empty() {
            return Ok(Vec::new());
        }
        let mut objects = input.read_sound()?.manifests();
        if let Some(namespace) = &input.namespace {
            for object in &mut objects {
                let metadata = &mut object["metadata"];
                if metadata.get("namespace").is_none() {
                    metadata["namespace"] = json!(namespace);
                }
            }
        }
        Ok(objects)
    }

    /// What can be done with it now.
    fn welcome(&self, cluster: &Cluster, kubeconfig: &Path) -> String {
        let lab = &self.name.lab_name;
        let option = if lab == "default" { String::new() } else { format!(" --name {lab}") };
        let nodes = plural(self.lab.nodes as usize, "node");
        let (address, kubeconfig) = (cluster.server().address(), kubeconfig.display());
        format!(
            "{BOLD}The lab is up{BOLD:#}: {nodes}, and the Kubernetes API at https://{address}. In \
             another terminal:\n  \
             export KUBECONFIG={kubeconfig}\n  \
             kubectl get pods --all-namespaces\n  \
             portcullis lab probe SRC DST PORT{option}    a connection, with real packets\n  \
             portcullis lab probe{option}                 all of them\n  \
             portcullis observe --lab --follow{option}    what is refused and allowed, and why\n\
             Ctrl-C, or portcullis lab down{option}, ends it.\n"
        )
    }
}

/// Applies the objects, namespaces first. Namespaces that are nowhere else are made.
fn apply(cluster: &Cluster, objects: &[Value]) -> Result<(), Trouble> {
    let is_namespace = |object: &&Value| object["kind"] == "Namespace";
    let named: BTreeSet<&str> = objects
        .iter()
        .filter(is_namespace)
        .filter_map(|o| o["metadata"]["name"].as_str())
        .collect();
    let used: BTreeSet<&str> =
        objects.iter().filter_map(|o| o["metadata"]["namespace"].as_str()).collect();
    let server = cluster.server();
    for name in used.difference(&named) {
        let metadata = json!({"name": name});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        server.apply(&namespace).map_err(Error::from)?;
    }
    let rest = objects.iter().filter(|object| !is_namespace(object));
    for object in objects.iter().filter(is_namespace).chain(rest) {
        match server.apply(object) {
            Err(error @ portcullis_lab::ServerError::NotServed { .. }) => {
                anstream::eprintln!("{DIM}note{DIM:#}: {error}; it is left out");
            }
            applied => applied.map_err(Error::from)?,
        }
    }
    Ok(())
}

/// Answers commands until one of them, or a signal, ends the lab.
fn serve(cluster: &mut Cluster, control: &mut Control) -> Result<(), Trouble> {
    loop {
        let mut connection = match control.next_event()? {
            Event::Stop => return Ok(()),
            Event::Connection(connection) => connection,
        };
        // A command that goes away before its answer is no reason to end the lab.
        let Ok(Some(line)) = connection.receive() else { continue };
        let (code, text) = match serde_json::from_str(&line) {
            Err(error) => (2, format!("error: this lab does not understand {line:?}: {error}")),
            Ok(Request::Down) => {
                let _ = connection.send("0");
                return Ok(());
            }
            Ok(Request::Probe { ends, namespace, verbose, json, width }) => {
                let asked = Asked { ends, namespace, verbose, json, width };
                let answer = probe(cluster, asked);
                answer.unwrap_or_else(|trouble| (2, format!("error: {trouble}")))
            }
        };
        let _ = connection.send(&code.to_string()).and_then(|()| connection.send(&text));
    }
}

/// Tries connections between what is up, and predicts them from what the API says.
fn probe(cluster: &mut Cluster, asked: Asked) -> Result<(u8, String), Trouble> {
    let input = cluster.settle()?;
    let mut network = cluster.lab(&input.cluster)?;
    let plan = network.plan().clone();
    let program = Program::compile(&plan.cluster);
    let page = Page { input: &input, plan: &plan, program: &program };
    let answer = page.probe(&mut network, asked);
    cluster.put_back(network)?;
    answer
}
