//! The plugin as a container runtime starts it, and an agent that says what the test wants.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use portcullis_cni::protocol::{Answer, Request, line};
use portcullis_cni::{Attachments, InForce};
use serde_json::{Value, json};

/// A folder for the files of a node, and what the agent on it was asked.
struct Node {
    folder: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Node {
    fn without_agent(name: &str) -> Node {
        let folder = std::env::temp_dir().join(format!("plugin-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        Node { folder, asked: Arc::default() }
    }

    /// With an agent that answers so. Without an answer it hangs up.
    fn with_agent(
        name: &str,
        answer: impl Fn(&Request) -> Option<Answer> + Send + 'static,
    ) -> Node {
        let node = Node::without_agent(name);
        let listener = UnixListener::bind(node.socket()).unwrap();
        let asked = node.asked.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut text = String::new();
                BufReader::new(&stream).read_line(&mut text).unwrap();
                let request: Request = serde_json::from_str(&text).unwrap();
                asked.lock().unwrap().push(request.clone());
                if let Some(answer) = answer(&request) {
                    stream.write_all(&line(&answer)).unwrap();
                }
            }
        });
        node
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    fn attachments(&self) -> PathBuf {
        self.folder.join("attachments")
    }

    fn configuration(&self, version: &str, more: Value) -> Value {
        let mut configuration = json!({
            "cniVersion": version,
            "name": "net",
            "type": "portcullis-cni",
            "socket": self.socket(),
            "attachments": self.attachments(),
            "prevResult": {
                "cniVersion": version,
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [{"address": "10.0.1.7/24", "gateway": "10.0.1.1", "interface": 1}],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dns": {},
            },
        });
        let (Value::Object(all), Value::Object(more)) = (&mut configuration, more) else {
            unreachable!()
        };
        all.extend(more);
        configuration
    }

    fn add(&self, version: &str, more: Value) -> Called {
        call("ADD", &self.configuration(version, more))
    }

    fn noted(&self) -> Vec<String> {
        let mut noted = Attachments::of(&self.attachments()).read().unwrap();
        noted.sort_by(|a, b| a.container.cmp(&b.container));
        noted.iter().map(|a| format!("{}/{} {:?}", a.namespace, a.pod, a.addresses)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What the plugin did.
#[derive(Debug)]
struct Called {
    success: bool,
    output: Value,
}

impl Called {
    #[track_caller]
    fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.output["code"].as_u64().unwrap()
    }

    fn message(&self) -> &str {
        self.output["msg"].as_str().unwrap()
    }
}

fn call(command: &str, configuration: &Value) -> Called {
    call_with(
        command,
        "sandbox-1",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=6b1f",
        configuration.to_string().as_bytes(),
    )
}

fn call_with(command: &str, container: &str, arguments: &str, input: &[u8]) -> Called {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis-cni"))
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", container)])
        .envs([("CNI_NETNS", "/run/netns/a"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", arguments)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    let output = match stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&stdout).unwrap(),
    };
    Called { success: status.success(), output }
}

fn enforced(_: &Request) -> Option<Answer> {
    Some(Answer::Enforced)
}

#[test]
fn add_passes_the_result_through_when_the_kernel_enforces() {
    let node = Node::with_agent("enforced", enforced);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let added = node.add(version, json!({"runtimeConfig": {}, "whenAgentIsDown": "refuse"}));
        assert!(added.success, "{added:?}");
        assert_eq!(added.output, node.configuration(version, json!({}))["prevResult"]);
    }
    let Request::Add(asked) = node.asked.lock().unwrap()[0].clone() else { unreachable!() };
    assert_eq!(
        (&*asked.namespace, &*asked.pod, asked.uid.as_deref()),
        ("shop", "web-0", Some("6b1f"))
    );
    assert_eq!(
        (&*asked.network, &*asked.container, &*asked.interface),
        ("net", "sandbox-1", "eth0")
    );
    assert_eq!(asked.addresses, ["10.0.1.7".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_pod_that_the_agent_does_not_know_yet_starts_closed_or_not_at_all() {
    let closed = |_: &Request| Some(Answer::Closed { why: "nobody told".to_owned() });
    let node = Node::with_agent("unknown", closed);
    assert!(node.add("1.0.0", json!({})).success);
    assert!(node.add("1.0.0", json!({"whenAgentIsDown": "open"})).success);
    let refused = node.add("1.0.0", json!({"whenAgentIsDown": "refuse"}));
    assert_eq!((refused.code(), refused.message()), (11, "nobody told"));
    assert_eq!(refused.output["cniVersion"], "1.0.0");
}

#[test]
fn without_an_agent_a_pod_starts_only_where_the_kernel_is_known_to_close_it() {
    let node = Node::without_agent("away");
    let address = |text: &str| text.parse().unwrap();
    assert_eq!(node.add("1.0.0", json!({"whenAgentIsDown": "refuse"})).code(), 11);
    assert!(node.add("1.0.0", json!({"whenAgentIsDown": "open"})).success);
    // Nothing has been in force since the machine started.
    let refused = node.add("1.0.0", json!({}));
    assert_eq!(refused.code(), 11);
    assert!(refused.message().contains("10.0.1.7"), "{refused:?}");

    let mut in_force = InForce {
        closed: vec![(address("10.0.1.0"), address("10.0.1.255"))],
        programmed: vec![address("10.0.1.9")],
        ..InForce::default()
    };
    in_force.write(&node.socket()).unwrap();
    assert!(node.add("1.0.0", json!({})).success);
    assert_eq!(node.noted(), ["shop/web-0 [10.0.1.7]"], "for the agent when it is back");
    // The address is programmed for whoever had it before.
    in_force.programmed.push(address("10.0.1.7"));
    in_force.write(&node.socket()).unwrap();
    assert_eq!(node.add("1.0.0", json!({})).code(), 11);
    // In audit nothing is refused, also no pod.
    in_force.audit = true;
    in_force.write(&node.socket()).unwrap();
    assert!(node.add("1.0.0", json!({})).success);
}

#[test]
fn an_agent_that_fails_or_hangs_up_is_as_good_as_none() {
    let node = Node::with_agent("fails", |_| Some(Answer::Failed { why: "no table".to_owned() }));
    let refused = node.add("1.0.0", json!({}));
    assert_eq!(refused.code(), 11);
    assert!(refused.message().starts_with("no table; and nothing"), "{refused:?}");
    let node = Node::with_agent("hangs-up", |_| None);
    let refused = node.add("1.0.0", json!({}));
    assert_eq!(refused.code(), 11);
    assert!(refused.message().contains("hung up"), "{refused:?}");
}

#[test]
fn del_forgets_and_succeeds_however_often_it_is_called() {
    let node = Node::with_agent("del", |request| match request {
        Request::Delete { .. } => Some(Answer::Done),
        _ => Some(Answer::Enforced),
    });
    node.add("0.3.1", json!({}));
    assert_eq!(node.noted().len(), 1);
    for _ in 0..3 {
        let mut configuration = node.configuration("0.3.1", json!({}));
        configuration.as_object_mut().unwrap().remove("prevResult");
        let deleted = call("DEL", &configuration);
        assert!(deleted.success, "{deleted:?}");
        assert_eq!(deleted.output, Value::Null);
        assert_eq!(node.noted(), [""; 0]);
    }
    let asked = node.asked.lock().unwrap();
    assert_eq!(asked.len(), 2, "the agent is told once: {asked:?}");
    let node = Node::without_agent("del-away");
    assert!(call("DEL", &node.configuration("1.1.0", json!({}))).success);
}

#[test]
fn check_says_whether_the_policies_are_in_force() {
    let node = Node::with_agent("check", enforced);
    assert!(call("CHECK", &node.configuration("0.4.0", json!({}))).success);
    assert_eq!(call("CHECK", &node.configuration("0.3.1", json!({}))).code(), 1);
    let node = Node::with_agent("check-not", |_| Some(Answer::Failed { why: "not so".to_owned() }));
    let failed = call("CHECK", &node.configuration("1.0.0", json!({})));
    assert_eq!((failed.code(), failed.message()), (100, "not so"));
    let node = Node::without_agent("check-away");
    assert_eq!(call("CHECK", &node.configuration("1.0.0", json!({}))).code(), 11);
}

#[test]
fn gc_drops_what_is_no_longer_valid_in_this_network() {
    let node = Node::with_agent("gc", |_| Some(Answer::Done));
    let add = |container: &str, address: &str, network: &str| {
        let mut configuration =
            node.configuration("1.1.0", json!({"name": network, "whenAgentIsDown": "open"}));
        configuration["prevResult"]["ips"][0]["address"] = address.into();
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}");
        assert!(
            call_with("ADD", container, &arguments, configuration.to_string().as_bytes()).success
        );
    };
    add("a", "10.0.1.1/24", "net");
    add("b", "10.0.1.2/24", "net");
    add("c", "10.0.2.3/24", "other");
    let unsaid = call("GC", &node.configuration("1.1.0", json!({})));
    assert_eq!(unsaid.code(), 7);
    assert_eq!(node.noted().len(), 3);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
    assert_eq!(call("GC", &node.configuration("1.0.0", valid.clone())).code(), 1);
    assert!(call("GC", &node.configuration("1.1.0", valid)).success);
    assert_eq!(node.noted(), ["shop/b [10.0.1.2]", "shop/c [10.0.2.3]"]);
    let told = node
        .asked
        .lock()
        .unwrap()
        .iter()
        .filter(|r| matches!(r, Request::Delete { container, .. } if container == "a"))
        .count();
    assert_eq!(told, 1);
}

#[test]
fn status_says_whether_a_pod_could_be_added() {
    let node = Node::with_agent("ready", |_| Some(Answer::Ready));
    assert!(call("STATUS", &node.configuration("1.1.0", json!({}))).success);
    assert_eq!(call("STATUS", &node.configuration("1.0.0", json!({}))).code(), 1);
    let unready =
        Node::with_agent("unready", |_| Some(Answer::Unready { why: "not yet".to_owned() }));
    let said = call("STATUS", &unready.configuration("1.1.0", json!({})));
    assert_eq!((said.code(), said.message()), (50, "not yet"));
    let node = Node::with_agent("limited", |_| Some(Answer::Failed { why: "refused".to_owned() }));
    assert_eq!(call("STATUS", &node.configuration("1.1.0", json!({}))).code(), 51);
    let node = Node::without_agent("status-away");
    assert_eq!(call("STATUS", &node.configuration("1.1.0", json!({}))).code(), 50);
    assert!(
        call("STATUS", &node.configuration("1.1.0", json!({"whenAgentIsDown": "open"}))).success
    );
    let closes = InForce {
        closed: vec![("10.0.1.0".parse().unwrap(), "10.0.1.255".parse().unwrap())],
        ..InForce::default()
    };
    closes.write(&node.socket()).unwrap();
    assert!(call("STATUS", &node.configuration("1.1.0", json!({}))).success);
    let refuse = json!({"whenAgentIsDown": "refuse"});
    assert_eq!(call("STATUS", &node.configuration("1.1.0", refuse)).code(), 50);
}

#[test]
fn version_needs_nothing() {
    let said = call_with("VERSION", "", "", br#"{"cniVersion": "0.4.0"}"#);
    let versions = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(said.output, json!({"cniVersion": "0.4.0", "supportedVersions": versions}));
    assert_eq!(call_with("VERSION", "", "", b"").output["cniVersion"], "1.1.0");
}

#[test]
fn what_is_wrong_has_the_code_of_the_specification() {
    let node = Node::without_agent("wrong");
    let fine = node.configuration("1.0.0", json!({}));
    let with = |key: &str, value: Value| {
        let mut configuration = fine.clone();
        configuration[key] = value;
        call("ADD", &configuration)
    };
    assert_eq!(with("cniVersion", "0.2.0".into()).code(), 1);
    assert_eq!(with("cniVersion", "2.0.0".into()).code(), 1);
    let field = with("whenAgentIsDown", "maybe".into());
    assert_eq!(field.code(), 2);
    assert!(field.message().contains("whenAgentIsDown is \"maybe\""), "{field:?}");
    assert_eq!(with("name", "".into()).code(), 7);
    assert_eq!(with("prevResult", Value::Null).code(), 7);
    assert_eq!(with("prevResult", json!({"ips": []})).code(), 7);
    assert_eq!(with("prevResult", json!({"ips": [{"address": "10.0.0.300/24"}]})).code(), 7);
    assert_eq!(with("prevResult", "text".into()).code(), 6);
    assert_eq!(call_with("ADD", "sandbox-1", "", b"{").code(), 6);
    let input = fine.to_string();
    let unknown = call_with("ADD", "sandbox-1", "K8S_POD_NAME=web", input.as_bytes());
    assert_eq!(unknown.code(), 4);
    assert!(unknown.message().contains("K8S_POD_NAMESPACE"), "{unknown:?}");
    for container in ["", "-a", "a/b"] {
        let wrong = call_with("ADD", container, "", input.as_bytes());
        assert_eq!(wrong.code(), 4);
        assert!(wrong.message().contains("CNI_CONTAINERID"), "{wrong:?}");
    }
    assert_eq!(call_with("MOVE", "sandbox-1", "", input.as_bytes()).code(), 4);
    fs::write(node.folder.join("a-file"), "").unwrap();
    let nowhere: &Path = &node.folder.join("a-file/below");
    assert_eq!(with("attachments", json!(nowhere)).code(), 5);
}
