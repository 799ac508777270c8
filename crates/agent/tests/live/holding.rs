//! What an agent says that its kernel holds, and that in audit it refuses nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use portcullis_agent::Mode;
use portcullis_cni::protocol::{Answer, Held, Holding, Request, line};
use portcullis_dataplane::{Ended, Error, Hits, Report};
use serde_json::{Value, json};

use super::{
    Dataplane, Difference, NODE, NodeState, Running, Server, Watched, cluster, eventually, policy,
    wanted,
};

/// An agent that people can ask, and where.
fn agent(server: &Server, dataplane: impl Dataplane + Send + 'static) -> (Running, SocketAddr) {
    let api = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = Running::with(server, dataplane, |options| options.api_address = Some(api));
    (agent, api)
}

/// Every line of an answer.
fn ask(api: SocketAddr, request: &Request) -> Vec<Answer> {
    let mut stream = TcpStream::connect(api);
    eventually("an agent that answers", || {
        if stream.is_err() {
            stream = TcpStream::connect(api);
        }
        stream.is_ok()
    });
    let mut stream = stream.unwrap();
    stream.write_all(&line(request)).unwrap();
    let mut answers = Vec::new();
    for line in BufReader::new(stream).lines() {
        let answer = serde_json::from_str(&line.unwrap()).unwrap();
        let more = matches!(answer, Answer::Policies(_));
        answers.push(answer);
        if !more {
            break;
        }
    }
    answers
}

fn holding(api: SocketAddr, only: Option<&str>) -> Result<Holding, String> {
    let namespace = only.map(|_| "shop".to_owned());
    let answers = ask(api, &Request::Policies { namespace, name: only.map(str::to_owned) });
    match &answers[..] {
        [Answer::Policies(holding), Answer::Done] => Ok(holding.clone()),
        [Answer::Failed { why }] => Err(why.clone()),
        other => panic!("{other:?}"),
    }
}

fn held(api: SocketAddr, name: &str) -> Held {
    let holding = holding(api, Some(name)).unwrap();
    assert_eq!(holding.node, NODE);
    let [held] = &holding.policies[..] else { panic!("{holding:?}") };
    held.clone()
}

fn version(mut policy: Value, uid: &str, generation: i64, mode: Option<&str>) -> Value {
    policy["metadata"]["uid"] = uid.into();
    policy["metadata"]["generation"] = generation.into();
    if let Some(mode) = mode {
        policy["metadata"]["annotations"] = json!({"portcullis.dev/mode": mode, "other": "x"});
    }
    policy
}

pub(crate) fn generations() {
    let server = Server::start(30);
    cluster(&server);
    let db = || policy("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    server.put("networkpolicies", version(db(), "u1", 1, None));
    let fake = Watched::default();
    let (agent, api) = agent(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    eventually("the first generation", || holding(api, None).is_ok_and(|h| h.policies.len() == 1));
    let first = held(api, "db");
    assert_eq!((&*first.uid, first.generation, &*first.mode), ("u1", 1, "enforce"));
    assert_eq!((first.pods, &first.addresses[..]), (1, &["10.0.2.2".parse().unwrap()][..]));
    assert_eq!(holding(api, Some("nothing")).unwrap().policies, []);

    // The same once more: nothing goes to the kernel, and yet it is the new one that is in force.
    let applied = agent.metric("portcullis_apply_duration_seconds_count");
    server.put("networkpolicies", version(db(), "u1", 2, None));
    eventually("the second generation", || held(api, "db").generation == 2);
    assert_eq!(agent.metric("portcullis_apply_duration_seconds_count"), applied);
    server.put("networkpolicies", version(db(), "u2", 1, Some("audit")));
    eventually("another object", || held(api, "db").uid == "u2");
    assert_eq!(held(api, "db").mode, "audit");
    assert!(fake.state().unwrap().profiles.values().any(|profile| profile.audit_ingress));
    let page = agent.get("/metrics").1;
    let line = "portcullis_policy_generation{namespace=\"shop\",policy=\"db\",uid=\"u2\",mode=\"audit\"} 1";
    assert!(page.lines().any(|l| l == line), "{page}");

    // Its own mode comes before that of its namespace.
    server.put("networkpolicies", version(db(), "u2", 1, None));
    eventually("no mode", || held(api, "db").mode == "enforce");
    let mut namespace = super::namespace("shop", "a");
    namespace["metadata"]["annotations"] = json!({"portcullis.dev/mode": "audit"});
    server.put("namespaces", namespace);
    eventually("the mode of the namespace", || held(api, "db").mode == "audit");
    server.put("networkpolicies", version(db(), "u2", 1, Some("enforce")));
    eventually("its own mode", || held(api, "db").mode == "enforce");

    let delete = Request::Delete { container: "c".to_owned(), interface: "eth0".to_owned() };
    let [Answer::Failed { why }] = &ask(api, &delete)[..] else { panic!("it was deleted") };
    assert!(why.contains("Unix socket"), "{why}");
    assert_eq!(ask(api, &Request::Status), [Answer::Ready]);
    agent.stop();
}

/// A data plane that refuses whatever has a second policy.
#[derive(Clone, Default)]
struct Stubborn(Watched);

impl Dataplane for Stubborn {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        match state.profiles.values().any(|profile| profile.egress.is_some()) {
            true => Err(Error::Dangling { what: "patience", number: 1, place: "here".to_owned() }),
            false => self.0.apply(state),
        }
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        self.0.hits()
    }

    fn ended(&mut self) -> Result<Ended, Error> {
        self.0.ended()
    }

    fn tidy(&mut self, wait: bool) -> bool {
        self.0.tidy(wait)
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        self.0.differences()
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.0.remove()
    }
}

pub(crate) fn refused() {
    let server = Server::start(30);
    cluster(&server);
    let (agent, api) = agent(&server, Stubborn::default());
    eventually("the first state", || holding(api, None).is_ok());
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    server.put("networkpolicies", policy("egress", spec));
    eventually("a refusal", || holding(api, None).is_err_and(|why| why.contains("patience")));
    server.delete("networkpolicies", "shop", "egress");
    eventually("no refusal", || holding(api, None).is_ok());
    agent.stop();
}

pub(crate) fn audit() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let api = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = Running::with(&server, fake.clone(), |options| {
        (options.mode, options.api_address) = (Mode::Audit, Some(api));
    });
    let expected = NodeState { audit: true, ..wanted(&server) };
    eventually("the first state", || fake.state().as_ref() == Some(&expected));
    eventually("its policies", || holding(api, None).is_ok());
    assert_eq!(held(api, "db").mode, "audit");
    let (web, db) = ("10.0.9.2".parse().unwrap(), "10.0.2.2".parse().unwrap());
    let packet = portcullis_dataplane::Packet {
        source: web,
        destination: db,
        protocol: 17,
        port: Some(53),
        bytes: 60,
    };
    assert!(fake.0.lock().unwrap().0.passes(&packet));
    agent.stop();
}
