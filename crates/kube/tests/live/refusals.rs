//! Servers that say no, say nonsense, or say nothing.

use std::time::{Duration, Instant};

use portcullis_kube::live::Error;
use portcullis_kube::{Options, Reason, Severity, Source, load};

use crate::server::{Objects, Reply, Server, access, kubeconfig, list, status};

fn forbidding(kinds: &'static [&'static str]) -> Server {
    let objects =
        Objects::from([("namespaces", vec![serde_json::json!({"metadata": {"name": "shop"}})])]);
    Server::start(move |asked| {
        if !kinds.contains(&&*asked.plural) {
            return list(&objects, asked);
        }
        let message = format!("{} is forbidden: User \"me\" cannot list it", asked.plural);
        status(403, "Forbidden", &message)
    })
}

fn message(server: &Server) -> String {
    server.read().unwrap_err().to_string().replace(&server.url, "SERVER")
}

#[test]
fn without_permission_for_what_decides_there_is_no_answer() {
    let server = forbidding(&["pods", "networkpolicies", "jobs"]);
    let error = server.read().unwrap_err();
    let Error::Forbidden { resources, .. } = &error else { panic!("{error}") };
    assert_eq!(resources, &["networkpolicies.networking.k8s.io", "pods"]);
    let text = error.to_string();
    for part in [
        "cluster/test: may not list networkpolicies.networking.k8s.io, pods in all namespaces",
        "the server says: ",
        "kubectl create clusterrole portcullis-read --verb=list --resource=networkpolicies.networking.k8s.io,namespaces,pods,nodes,services,replicasets.apps,jobs.batch",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn without_permission_for_what_only_names_there_is_a_note() {
    let server = forbidding(&["nodes", "services", "replicasets", "jobs"]);
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    assert!(input.diagnostics.iter().all(|d| d.severity == Severity::Note));
    assert!(input.diagnostics.iter().all(|d| d.reason == Reason::NotPermitted));
    let lines: Vec<_> = input.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "cluster/test: note: may not list nodes in all namespaces: the addresses of nodes are taken for addresses outside the cluster",
            "cluster/test: note: may not list services in all namespaces: no Service is known by name or by cluster IP",
            "cluster/test: note: may not list replicasets.apps in all namespaces: pods of a ReplicaSet without a Deployment may go by a wrong name",
            "cluster/test: note: may not list jobs.batch in all namespaces: the pods of a CronJob go by the name of their Job",
        ]
    );
}

#[test]
fn a_server_without_what_only_names_gets_a_note() {
    let server = Server::start(move |asked| match &*asked.plural {
        "jobs" => status(404, "NotFound", "the server could not find the requested resource"),
        _ => list(&Objects::new(), asked),
    });
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    let lines: Vec<_> = input.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[0],
        "cluster/test: note: does not have jobs.batch: the pods of a CronJob go by the name of their Job"
    );
}

#[test]
fn expired_credentials_are_told_from_missing_permission() {
    let server = Server::start(|_| status(401, "Unauthorized", "Unauthorized"));
    assert_eq!(
        message(&server),
        "SERVER does not accept these credentials (401 Unauthorized): they are wrong or have \
         expired; log in again and check with `kubectl auth whoami`"
    );
}

#[test]
fn what_is_no_list_is_no_answer() {
    for (reply, expected) in [
        ("{\"kind\":\"PodList\",\"items\":[{", "SERVER sent no list: EOF while parsing"),
        ("<html>log in</html>", "SERVER sent no list: expected value at line 1"),
        ("{\"kind\":\"Pod\"}", "SERVER sent no list: an object without items"),
        ("[]", "SERVER sent no list: JSON that is not an object"),
        ("{\"items\":[7]}", "SERVER sent no list: an item that is not an object: 7"),
    ] {
        let server = Server::start(move |_| Reply::Answer(200, reply.to_owned()));
        let message = message(&server);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_server_that_is_something_else_is_told() {
    let server = Server::start(|_| Reply::Answer(404, "404 page not found".to_owned()));
    let text = message(&server);
    assert!(
        text.ends_with("SERVER has no such thing (404): is it a Kubernetes API server?"),
        "{text}"
    );
    let server = Server::start(|_| status(500, "InternalError", "etcd is gone\nand more"));
    let text = message(&server);
    assert!(text.ends_with("SERVER says 500: etcd is gone"), "{text}");
}

#[test]
fn a_connection_that_ends_early_is_no_answer() {
    let server = Server::start(|_| Reply::Close);
    let error = server.read().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let server = Server::start(|_| Reply::Silence);
    let mut access = access(&kubeconfig(&server.url, "", "token: secret"));
    access.timeout = Duration::from_millis(300);
    let start = Instant::now();
    let error = access.read(|_| ()).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(error.to_string().contains("did not answer within 0.3 s"), "{error}");
}

#[test]
fn a_port_where_nobody_listens_is_told_with_its_address() {
    let server = "http://127.0.0.1:9";
    let error = access(&kubeconfig(server, "", "token: secret")).read(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(text.starts_with("cannot reach http://127.0.0.1:9: Connection refused"), "{text}");
}
