//! What the plugin does when a container runtime starts it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::configuration::{Configuration, VERSIONS, WhenAgentIsDown};
use crate::protocol::{Answer, Attachment, Request, ask};
use crate::{Attachments, Error, InForce};

/// The name of the plugin: of its file, and `type` in a network configuration.
pub const PLUGIN: &str = "portcullis-cni";

/// How long the agent may take to put a pod's policies in force. Runtimes have minutes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take where its answer changes nothing.
const TELLING: Duration = Duration::from_secs(1);

/// The environment variables that a runtime sets.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub interface: String,
    /// `CNI_ARGS`: `KEY=VALUE`, joined by semicolons.
    pub arguments: String,
}

impl Environment {
    /// Reads it from this source of variables.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let get = |name: &str| variable(name).unwrap_or_default();
        Environment {
            command: get("CNI_COMMAND"),
            container: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            interface: get("CNI_IFNAME"),
            arguments: get("CNI_ARGS"),
        }
    }

    fn argument(&self, key: &str) -> Option<&str> {
        let mut pairs = self.arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(k, value)| (k == key && !value.is_empty()).then_some(value))
    }

    /// The variables that say which interface is meant.
    fn check(&self, needs_netns: bool) -> Result<(), Error> {
        let is_word = |text: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inner)
        };
        let is_interface = |name: &str| {
            let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace();
            !["", ".", ".."].contains(&name) && name.len() < 16 && !name.contains(wrong)
        };
        let mut wrong = Vec::new();
        if !is_word(&self.container) {
            wrong.push(format!("CNI_CONTAINERID is {:?}", self.container));
        }
        if !is_interface(&self.interface) {
            wrong.push(format!("CNI_IFNAME is {:?}", self.interface));
        }
        if needs_netns && self.netns.is_empty() {
            wrong.push("CNI_NETNS is not set".to_owned());
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::Environment(wrong.join("; "))),
        }
    }
}

/// Does what the runtime asks by these variables and this configuration, and returns what goes to
/// standard output.
///
/// # Errors
/// What goes there instead: [`Error::json`].
pub fn run(environment: &Environment, input: &[u8]) -> Result<String, Error> {
    if environment.command == "VERSION" {
        return Ok(versions(input));
    }
    let configuration = Configuration::read(input)?;
    match &*environment.command {
        "ADD" => add(environment, &configuration),
        "DEL" => delete(environment, &configuration),
        "CHECK" => check(environment, &configuration),
        "GC" => collect(&configuration),
        "STATUS" => status(&configuration),
        other => Err(Error::Environment(format!(
            "CNI_COMMAND is {other:?}; expected ADD, DEL, CHECK, GC, STATUS or VERSION"
        ))),
    }
}

/// The version to answer in is the one that was asked in.
fn versions(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(input).ok();
    let asked = asked.and_then(|asked| asked.get("cniVersion")?.as_str().map(str::to_owned));
    let version = asked.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
    json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string()
}

/// The pod starts when this returns.
fn add(environment: &Environment, configuration: &Configuration) -> Result<String, Error> {
    environment.check(true)?;
    let attachment = attachment(environment, configuration)?;
    let when_down = configuration.when_agent_is_down()?;
    let socket = configuration.socket();
    // Before the agent is asked: if it is not there, it finds the file when it is back.
    let noted = Attachments::of(&configuration.attachments()).put(&attachment);
    noted.map_err(|source| Error::Io {
        what: format!("cannot note the pod in {}", configuration.attachments().display()),
        source,
    })?;
    let why = match ask(&socket, &Request::Add(attachment.clone()), PATIENCE) {
        Ok(Answer::Enforced) => None,
        Ok(Answer::Closed { .. }) if when_down != WhenAgentIsDown::Refuse => None,
        Ok(Answer::Closed { why } | Answer::Failed { why }) => Some(why),
        Ok(other) => Some(format!("the agent gave an answer that fits no pod: {other:?}")),
        Err(error) => Some(format!("the agent at {} does not answer: {error}", socket.display())),
    };
    match (why, when_down) {
        (None, _) | (Some(_), WhenAgentIsDown::Open) => {}
        (Some(why), WhenAgentIsDown::Refuse) => return Err(Error::TryAgain(why)),
        (Some(why), WhenAgentIsDown::Closed) => closed_without(&socket, &attachment, &why)?,
    }
    Ok(Value::Object(configuration.previous()?).to_string())
}

/// Whether the kernel isolates the pod without the agent, or nothing is to be isolated.
fn closed_without(socket: &Path, attachment: &Attachment, why: &str) -> Result<(), Error> {
    let in_force = InForce::read(socket).unwrap_or_default();
    if in_force.audit {
        return Ok(());
    }
    match attachment.addresses.iter().find(|address| !in_force.is_closed(**address)) {
        None => Ok(()),
        Some(address) => Err(Error::TryAgain(format!(
            "{why}; and nothing in the kernel is known to close {address} until it does"
        ))),
    }
}

/// Never fails because of what is gone already, and never because the agent is away: it reads the
/// files when it is back.
fn delete(environment: &Environment, configuration: &Configuration) -> Result<String, Error> {
    environment.check(false)?;
    let Environment { container, interface, .. } = environment;
    drop_attachments(configuration, |attachment| {
        (&attachment.container, &attachment.interface) != (container, interface)
    })?;
    Ok(String::new())
}

fn check(environment: &Environment, configuration: &Configuration) -> Result<String, Error> {
    configuration.has("CHECK", "0.4.0")?;
    environment.check(true)?;
    let attachment = attachment(environment, configuration)?;
    match ask(&configuration.socket(), &Request::Check(attachment), PATIENCE) {
        Ok(Answer::Enforced) => Ok(String::new()),
        Ok(Answer::Failed { why } | Answer::Closed { why }) => Err(Error::NotEnforced(why)),
        Ok(other) => Err(Error::NotEnforced(format!("the agent answered {other:?}"))),
        Err(error) => Err(away(configuration, &error)),
    }
}

/// Drops what a runtime has lost without a DEL.
fn collect(configuration: &Configuration) -> Result<String, Error> {
    configuration.has("GC", "1.1.0")?;
    let valid = configuration.valid()?;
    drop_attachments(configuration, |attachment| {
        attachment.network != configuration.name
            || valid.iter().any(|valid| {
                (&valid.container, &valid.interface)
                    == (&attachment.container, &attachment.interface)
            })
    })?;
    Ok(String::new())
}

/// Says whether a pod could be added.
fn status(configuration: &Configuration) -> Result<String, Error> {
    configuration.has("STATUS", "1.1.0")?;
    let when_down = configuration.when_agent_is_down()?;
    let why = match ask(&configuration.socket(), &Request::Status, TELLING) {
        Ok(Answer::Ready) => return Ok(String::new()),
        Ok(Answer::Failed { why }) => return Err(Error::Limited(why)),
        Ok(Answer::Unready { why }) => why,
        Ok(other) => format!("the agent answered {other:?}"),
        Err(error) => away(configuration, &error).to_string(),
    };
    let closes =
        || InForce::read(&configuration.socket()).is_ok_and(|f| f.audit || !f.closed.is_empty());
    match when_down {
        WhenAgentIsDown::Open => Ok(String::new()),
        WhenAgentIsDown::Closed if closes() => Ok(String::new()),
        WhenAgentIsDown::Closed | WhenAgentIsDown::Refuse => Err(Error::Unavailable(why)),
    }
}

fn away(configuration: &Configuration, error: &std::io::Error) -> Error {
    let socket = configuration.socket();
    Error::TryAgain(format!("the agent at {} does not answer: {error}", socket.display()))
}

fn drop_attachments(
    configuration: &Configuration,
    valid: impl Fn(&Attachment) -> bool,
) -> Result<(), Error> {
    let folder = configuration.attachments();
    let dropped = Attachments::of(&folder).retain(valid);
    let dropped = dropped.map_err(|source| Error::Io {
        what: format!("cannot drop what is noted in {}", folder.display()),
        source,
    })?;
    for Attachment { container, interface, .. } in dropped {
        // An agent that is away reads the files when it is back.
        let _ = ask(&configuration.socket(), &Request::Delete { container, interface }, TELLING);
    }
    Ok(())
}

fn attachment(
    environment: &Environment,
    configuration: &Configuration,
) -> Result<Attachment, Error> {
    let needed = |key: &str| {
        environment.argument(key).map(str::to_owned).ok_or_else(|| {
            Error::Environment(format!(
                "CNI_ARGS has no {key}: only pods of Kubernetes have policies; it is {:?}",
                environment.arguments
            ))
        })
    };
    Ok(Attachment {
        network: configuration.name.clone(),
        container: environment.container.clone(),
        interface: environment.interface.clone(),
        namespace: needed("K8S_POD_NAMESPACE")?,
        pod: needed("K8S_POD_NAME")?,
        uid: environment.argument("K8S_POD_UID").map(str::to_owned),
        addresses: configuration.addresses()?,
    })
}
