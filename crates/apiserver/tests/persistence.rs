//! A state on disk: the server is killed at any moment, and nothing that it acknowledged is lost.
//!
//! The program runs itself with the argument `serve` to have a server that can be killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use libtest_mimic::{Arguments, Trial};
use portcullis_apiserver::{FakeRuntime, Options, Server};
use serde_json::json;

/// How often the server is killed.
const KILLS: u32 = 12;
const WRITERS: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, serve, directory] = &arguments[..]
        && serve == "serve"
    {
        return serve_until_killed(Path::new(directory));
    }
    let kills = Trial::test("nothing_acknowledged_is_lost_when_the_server_is_killed", || {
        nothing_is_lost();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![kills]).exit();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn serve_until_killed(directory: &Path) {
    runtime().block_on(async {
        let options = Options { state: Some(directory.to_owned()), ..Options::default() };
        let server = Server::start(options, Arc::new(FakeRuntime::default())).await.unwrap();
        let file = directory.join("kubeconfig");
        server.write_kubeconfig(&file).unwrap();
        println!("ready");
        std::future::pending::<()>().await;
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL: it has no chance to write anything more.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn start(directory: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("serve").arg(directory).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Killed(child)
}

async fn maps(directory: &Path) -> Api<ConfigMap> {
    let text = std::fs::read_to_string(directory.join("kubeconfig")).unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Api::default_namespaced(Client::try_from(config).unwrap())
}

fn map(name: &str, count: u64) -> ConfigMap {
    let object = json!({"metadata": {"name": name}, "data": {"count": count.to_string()}});
    serde_json::from_value(object).unwrap()
}

fn count(map: &ConfigMap) -> u64 {
    map.data.as_ref().unwrap()["count"].parse().unwrap()
}

fn revision(map: &ConfigMap) -> u64 {
    map.resource_version().unwrap().parse().unwrap()
}

/// What a writer was told: the number that it wrote last, and at which revision.
#[derive(Default)]
struct Told {
    count: AtomicU64,
    revision: AtomicU64,
}

async fn write(directory: PathBuf, name: String, told: Arc<Told>) {
    let maps = maps(&directory).await;
    loop {
        let next = map(&name, told.count.load(Ordering::SeqCst) + 1);
        let there = maps.replace(&name, &PostParams::default(), &next).await;
        let written = match there {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                maps.create(&PostParams::default(), &next).await
            }
            other => other,
        };
        // The server was killed.
        let Ok(written) = written else { return };
        told.revision.store(revision(&written), Ordering::SeqCst);
        told.count.store(count(&written), Ordering::SeqCst);
    }
}

fn nothing_is_lost() {
    let directory = std::env::temp_dir().join(format!("portcullis-kill-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let told: Vec<Arc<Told>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let runtime = runtime();
    let mut latest = 0;
    for kill in 0..KILLS {
        let server = start(&directory);
        runtime.block_on(async {
            let maps = maps(&directory).await;
            for (i, told) in told.iter().enumerate() {
                let acknowledged = told.count.load(Ordering::SeqCst);
                let Some(found) = maps.get_opt(&format!("c{i}")).await.unwrap() else {
                    assert_eq!(acknowledged, 0, "kill {kill}: c{i} is lost");
                    continue;
                };
                // The last write may have come to the disk before anybody was told.
                let written = count(&found);
                assert!(
                    written == acknowledged || written == acknowledged + 1,
                    "kill {kill}: c{i} has {written}, and {acknowledged} was acknowledged"
                );
                assert!(revision(&found) >= told.revision.load(Ordering::SeqCst));
                told.count.store(written, Ordering::SeqCst);
                latest = latest.max(told.revision.load(Ordering::SeqCst));
            }
            if kill > 0 {
                old_watch_is_told_or_goes_on(&maps, latest).await;
            }
            let writers = told.iter().enumerate().map(|(i, told)| {
                tokio::spawn(write(directory.clone(), format!("c{i}"), told.clone()))
            });
            let writers: Vec<_> = writers.collect();
            tokio::time::sleep(Duration::from_millis(150 + u64::from(kill * 37 % 100))).await;
            drop(server);
            for writer in writers {
                writer.await.unwrap();
            }
        });
    }
    let written: u64 = told.iter().map(|told| told.count.load(Ordering::SeqCst)).sum();
    assert!(written > u64::from(KILLS), "{written} writes in all: nothing was tested");
    std::fs::remove_dir_all(directory).unwrap();
}

/// A watch from before the restart ends with 410, or sees what comes after and never anything old.
async fn old_watch_is_told_or_goes_on(maps: &Api<ConfigMap>, from: u64) {
    let params = WatchParams::default().timeout(1);
    let mut events = pin!(maps.watch(&params, &from.to_string()).await.unwrap());
    while let Some(event) = events.next().await {
        match event.unwrap() {
            WatchEvent::Error(status) => return assert_eq!(status.code, 410, "{status}"),
            WatchEvent::Added(map) | WatchEvent::Modified(map) => {
                assert!(revision(&map) > from, "{map:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}
