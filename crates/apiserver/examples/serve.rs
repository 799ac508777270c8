//! An empty cluster for kubectl: `cargo run -p portcullis-apiserver --example serve -- FILE DIR` writes
//! a kubeconfig to FILE (`portcullis.kubeconfig` if there is none), keeps its state in DIR (in memory if
//! there is none), and serves until interrupted.
//!
//! Pods are nowhere here: they get addresses from 10.244.N.0/24, where N is the number of their node.
//! Their commands run beside the server, with its rights.

use std::path::PathBuf;
use std::sync::Arc;

use portcullis_apiserver::{FakeRuntime, Node, Options, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "portcullis.kubeconfig".to_owned());
    let file = PathBuf::from(file);
    let state = std::env::args().nth(2).map(PathBuf::from);
    let options = Options { state, ..Options::default() };
    let server = Server::start(options, Arc::new(FakeRuntime::default())).await?;
    for number in 1..=3 {
        server.add_node(&Node {
            name: format!("node-{number}"),
            addresses: vec![[192, 0, 2, number].into()],
            pod_cidrs: vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")],
        });
    }
    server.write_kubeconfig(&file)?;
    println!("export KUBECONFIG={}", file.display());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
