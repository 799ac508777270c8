//! How a cluster is found and asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::task::JoinSet;

use super::error::{Asked, Error};
use super::list::{Failure, RESOURCES, Resource};
use super::{LiveObject, Snapshot};
use crate::diagnostic::{Diagnostic, Location, Reason, Severity};

/// How long to wait for a connection, if no less is asked for.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// How often the progress is told.
const TICK: Duration = Duration::from_millis(200);

/// Which cluster to read, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The kubeconfig; `None` for the files in `$KUBECONFIG`, else `~/.kube/config`, else the
    /// service account of the pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The context; `None` for the current one.
    pub context: Option<String>,
    /// How long one answer may take.
    pub timeout: Duration,
    /// How long a watch waits after a failure, at first and at most; in between each time twice as
    /// long.
    pub waits: [Duration; 2],
}

impl Default for Access {
    fn default() -> Access {
        Access {
            kubeconfig: None,
            context: None,
            timeout: Duration::from_secs(60),
            waits: [Duration::from_millis(200), Duration::from_secs(30)],
        }
    }
}

impl Access {
    /// Lists everything that decides about connections, in all namespaces. Tells several times a
    /// second how many objects it has so far.
    ///
    /// The lists are not of one instant: what changes while they are read can be in one and not
    /// in another.
    pub fn read(&self, mut progress: impl FnMut(usize)) -> Result<Snapshot, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        let snapshot = runtime.block_on(self.snapshot(&mut progress));
        // A name that is being looked up must not keep the answer waiting.
        runtime.shutdown_background();
        snapshot
    }

    async fn snapshot(&self, progress: &mut impl FnMut(usize)) -> Result<Snapshot, Error> {
        let (cluster, mut config) = self.config().await?;
        config.connect_timeout = Some(CONNECT.min(self.timeout));
        let asked = self.asked(&config);
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|e| asked.error(e))?;

        let count = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        for (i, resource) in RESOURCES.iter().enumerate() {
            let (client, cluster, count) = (client.clone(), cluster.clone(), count.clone());
            let timeout = self.timeout;
            running
                .spawn(async move { (i, resource.list(&client, &cluster, timeout, &count).await) });
        }
        let mut lists: [Vec<LiveObject>; RESOURCES.len()] = Default::default();
        let (mut refused, mut says) = (Vec::new(), String::new());
        loop {
            let listed = match tokio::time::timeout(TICK, running.join_next()).await {
                Err(_) => None,
                Ok(None) => break,
                Ok(Some(listed)) => Some(listed),
            };
            progress(count.load(Ordering::Relaxed));
            match listed.transpose().map_err(|e| Error::Runtime(e.into()))? {
                None => {}
                Some((i, Ok(objects))) => lists[i] = objects,
                Some((i, Err(Failure::Client(kube::Error::Api(status))))) if status.code == 403 => {
                    if RESOURCES[i].without.is_none() {
                        says = status.message.clone();
                    }
                    refused.push((i, ["may not list", " in all namespaces"]));
                }
                // Not every API server has workloads, or nodes.
                Some((i, Err(Failure::Client(kube::Error::Api(status)))))
                    if status.code == 404 && RESOURCES[i].without.is_some() =>
                {
                    refused.push((i, ["does not have", ""]));
                }
                Some((i, Err(failure))) => {
                    return Err(asked.listing(&RESOURCES[i], failure));
                }
            }
        }
        refused.sort_unstable();
        let resources = refused.into_iter().map(|(i, why)| (&RESOURCES[i], why));
        let (needed, spared): (Vec<(&Resource, _)>, Vec<(&Resource, _)>) =
            resources.partition(|(r, _)| r.without.is_none());
        if !needed.is_empty() {
            let resources = needed.iter().map(|(r, _)| r.qualified()).collect();
            return Err(Error::Forbidden { cluster, resources, says });
        }
        let note = |name: String, [what, scope]: [&str; 2], without: &str| Diagnostic {
            severity: Severity::Note,
            location: Some(Location {
                file: format!("cluster/{cluster}").into(),
                line: 0,
                column: 0,
            }),
            object: None,
            path: String::new(),
            reason: Reason::NotPermitted,
            message: format!("{what} {name}{scope}: {without}"),
        };
        let notes =
            spared.iter().filter_map(|(r, why)| Some(note(r.qualified(), *why, r.without?)));
        let notes = notes.collect();
        Ok(Snapshot { notes, namespace, objects: lists.into_iter().flatten().collect(), cluster })
    }

    pub(crate) fn asked(&self, config: &Config) -> Asked {
        Asked {
            server: server(config),
            login: config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone()),
            timeout: self.timeout,
        }
    }

    /// The name of the cluster and how to reach it.
    pub(crate) async fn config(&self) -> Result<(String, Config), Error> {
        let Some((file, kubeconfig)) = self.kubeconfig()? else {
            let in_pod =
                std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty());
            if in_pod && self.context.is_none() {
                let config = Config::incluster().map_err(|e| Error::ServiceAccount(e.into()))?;
                return Ok(("in-cluster".to_owned(), config));
            }
            return Err(Error::NoCluster { looked: looked() });
        };
        let known = || kubeconfig.contexts.iter().map(|c| c.name.clone()).collect();
        let wanted = self.context.clone().or_else(|| kubeconfig.current_context.clone());
        let wanted = wanted.filter(|name| !name.is_empty());
        let Some(name) = wanted else { return Err(Error::NoContext { file, known: known() }) };
        let context = kubeconfig.contexts.iter().find(|c| c.name == name);
        let Some(context) = context.and_then(|c| c.context.as_ref()) else {
            return Err(Error::UnknownContext { file, name, known: known() });
        };
        let cluster = context.cluster.clone();
        let options = KubeConfigOptions { context: Some(name), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Ok((cluster, config.map_err(|source| Error::Kubeconfig { file, source })?))
    }

    /// What the files say, and which they are; `None` where there are none and none was asked for.
    fn kubeconfig(&self) -> Result<Option<(String, Kubeconfig)>, Error> {
        let files: Vec<PathBuf> = match (&self.kubeconfig, std::env::var_os("KUBECONFIG")) {
            (Some(file), _) => vec![file.clone()],
            (None, Some(files)) if !files.is_empty() => {
                // As kubectl has it, some of those may be missing; that none is there is a mistake.
                let files: Vec<_> = std::env::split_paths(&files).collect();
                let there: Vec<_> = files.iter().filter(|f| f.exists()).cloned().collect();
                if there.is_empty() { files } else { there }
            }
            _ => default_file().filter(|file| file.exists()).into_iter().collect(),
        };
        if files.is_empty() {
            return Ok(None);
        }
        let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        let mut merged = Kubeconfig::default();
        for (file, name) in files.iter().zip(&names) {
            let read = Kubeconfig::read_from(file).and_then(|next| merged.merge(next));
            merged = read.map_err(|source| Error::Kubeconfig { file: name.clone(), source })?;
        }
        Ok(Some((names.join(", "), merged)))
    }
}

fn default_file() -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(Path::new(".kube/config")))
}

/// Where a cluster was looked for, for those who have none.
fn looked() -> String {
    let file = default_file().map_or("~/.kube/config".to_owned(), |f| f.display().to_string());
    format!("$KUBECONFIG is not set, {file} is not there, and this is not a pod of a cluster")
}

/// The address of the API server, without a password that may stand in it.
fn server(config: &Config) -> String {
    let url = &config.cluster_url;
    let address = url.authority().map_or("", |a| a.as_str());
    let address = address.rsplit('@').next().unwrap_or_default();
    format!("{}://{address}", url.scheme_str().unwrap_or("https"))
}
