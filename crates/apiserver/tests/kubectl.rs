//! Sessions with the real kubectl, as people type them: each `console` block of `kubectl/*.md` is
//! run, and what kubectl prints is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use portcullis_apiserver::{FakeRuntime, Node, Options, Server};

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[test]
fn kubectl_does_not_notice() {
    let Some(kubectl) = on_path("kubectl") else {
        // Not with a macro: what those print is not shown of a test that passes.
        let said = "SKIPPED: no kubectl on PATH, so no session with kubectl was tested\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let network = Arc::new(FakeRuntime::default());
    let server = runtime.block_on(Server::start(Options::default(), network)).unwrap();
    for number in 1..=2 {
        server.add_node(&Node {
            name: format!("node-{number}"),
            addresses: vec![[192, 0, 2, number].into()],
            pod_cidrs: vec![format!("10.244.{number}.0/24")],
        });
    }
    // kubectl keeps what it discovers under HOME.
    let home = std::env::temp_dir().join(format!("portcullis-kubectl-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let kubeconfig = home.join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).unwrap();
    let cases = trycmd::TestCases::new();
    cases
        .register_bin("kubectl", kubectl)
        .env("KUBECONFIG", kubeconfig.to_string_lossy())
        .env("HOME", home.to_string_lossy())
        .case("tests/kubectl/*.md")
        .run();
    // Files are run when the cases go.
    drop(cases);
    std::fs::remove_dir_all(&home).unwrap();
}
