//! Why a cluster could not be read, and what to do about it.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use kube::client::AuthError;
use kube::config::KubeconfigError;

use super::list::{Failure, RESOURCES, Resource};

/// Why a cluster could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kubeconfig anywhere, and no service account.
    #[error("there is no cluster to read: {looked}")]
    NoCluster {
        /// The places without one.
        looked: String,
    },
    /// A kubeconfig that cannot be read or makes no sense.
    #[error("the kubeconfig {file}: {}", innermost(source))]
    Kubeconfig {
        /// The file, or the files that were merged.
        file: String,
        /// What is wrong.
        source: KubeconfigError,
    },
    /// No current context, and none was named.
    #[error(
        "the kubeconfig {file} has no current context: name one with --context; {}",
        there_is(known)
    )]
    NoContext {
        /// The file, or the files that were merged.
        file: String,
        /// The contexts that it has.
        known: Vec<String>,
    },
    /// A context that the kubeconfig does not have.
    #[error("the kubeconfig {file} has no context {name:?}: {}", there_is(known))]
    UnknownContext {
        /// The file, or the files that were merged.
        file: String,
        /// The context that was wanted.
        name: String,
        /// The contexts that it has.
        known: Vec<String>,
    },
    /// The service account of the pod that this runs in cannot be used.
    #[error("the service account of this pod: {}", innermost(&**_0))]
    ServiceAccount(Box<dyn StdError + Send + Sync>),
    /// Credentials that the kubeconfig promises and that cannot be had.
    #[error("cannot log in to {server}: {why}")]
    Credentials {
        /// The address of the API server.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// The server does not know who is asking.
    #[error(
        "{server} does not accept these credentials (401 Unauthorized): they are wrong or have \
         expired; log in again and check with `kubectl auth whoami`"
    )]
    Unauthorized {
        /// The address of the API server.
        server: String,
    },
    /// Not permitted to list what every answer depends on.
    #[error("{}", forbidden(cluster, resources, says))]
    Forbidden {
        /// The name of the cluster.
        cluster: String,
        /// What may not be listed, as `networkpolicies.networking.k8s.io`.
        resources: Vec<String>,
        /// The words of the server for one of them.
        says: String,
    },
    /// No connection.
    #[error(
        "cannot reach {server}: {why}; is the cluster up, and is this still its address \
         (kubectl config view --minify)?"
    )]
    Unreachable {
        /// The address of the API server.
        server: String,
        /// What went wrong.
        why: String,
    },
    /// No agreement on who the server is.
    #[error("no secure connection to {server}: {why}; {}", secure(why))]
    Tls {
        /// The address of the API server.
        server: String,
        /// What went wrong.
        why: String,
    },
    /// The server took too long.
    #[error(
        "{server} did not answer within {} s: try again, or wait longer with --request-timeout",
        after.as_secs_f64()
    )]
    TimedOut {
        /// The address of the API server.
        server: String,
        /// How long that was.
        after: Duration,
    },
    /// An answer that an API server would not give.
    #[error("listing {resource}: {server} {why}")]
    Answer {
        /// The address of the API server.
        server: String,
        /// What was asked for.
        resource: String,
        /// What came instead.
        why: String,
    },
    /// The machine refused.
    #[error("cannot run: {0}")]
    Runtime(io::Error),
}

/// Who is asked, for messages.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The address of the API server.
    pub(crate) server: String,
    /// The program of the kubeconfig that logs in.
    pub(crate) login: Option<String>,
    pub(crate) timeout: Duration,
}

impl Asked {
    /// No answer.
    pub(crate) fn error(&self, error: kube::Error) -> Error {
        let server = self.server.clone();
        if let Some(auth) = find::<AuthError>(&error) {
            return Error::Credentials { server, why: self.login(auth) };
        }
        let why = innermost(&error);
        if why.contains("CertificateRequired") {
            let why = "it wants a client certificate, and the kubeconfig gives none".to_owned();
            return Error::Credentials { server, why };
        }
        let tls = ["peer certificate", "fatal alert", "handshake", "InvalidContentType"];
        if why.contains("timed out") || why.contains("deadline has elapsed") {
            return match find::<io::Error>(&error).map(io::Error::kind) {
                // The kernel gave up before us.
                Some(io::ErrorKind::TimedOut) if !why.contains("deadline") => {
                    Error::Unreachable { server, why }
                }
                _ => Error::TimedOut { server, after: self.timeout },
            };
        }
        if tls.iter().any(|part| why.contains(part)) {
            Error::Tls { server, why }
        } else {
            Error::Unreachable { server, why }
        }
    }

    /// A list that did not come.
    pub(crate) fn listing(&self, resource: &Resource, failure: Failure) -> Error {
        let server = self.server.clone();
        let answer = |why: String| Error::Answer {
            server: server.clone(),
            resource: resource.qualified(),
            why,
        };
        match failure {
            Failure::TimedOut => Error::TimedOut { server, after: self.timeout },
            Failure::NoList(found) => answer(format!("sent no list: {found}")),
            Failure::Client(kube::Error::Api(status)) => match status.code {
                401 => Error::Unauthorized { server },
                404 => answer("has no such thing (404): is it a Kubernetes API server?".to_owned()),
                code => {
                    let first = status.message.lines().next().unwrap_or_default();
                    let first: String = first.chars().take(200).collect();
                    answer(format!("says {code}: {first}"))
                }
            },
            Failure::Client(kube::Error::FromUtf8(error)) => {
                answer(format!("sent no text: {error}"))
            }
            Failure::Client(error) => self.error(error),
        }
    }

    /// What went wrong at a login, with the words of the program that was to do it.
    fn login(&self, error: &AuthError) -> String {
        let program = self.login.as_deref().unwrap_or("the program of the kubeconfig");
        match error {
            AuthError::AuthExecStart(source) => format!("{program} cannot be started: {source}"),
            AuthError::AuthExecRun { out, .. } => {
                let said = String::from_utf8_lossy(&out.stderr);
                format!("{program} ended with {}: {}", out.status, said.trim())
            }
            other => innermost(other),
        }
    }
}

/// What makes a connection a secure one.
fn secure(why: &str) -> &'static str {
    if why.contains("peer certificate") {
        "its certificate must be signed by the certificate-authority of the kubeconfig, be valid \
         today, and name this address (or tls-server-name)"
    } else {
        "does something else answer at this address?"
    }
}

fn there_is(known: &[String]) -> String {
    match known {
        [] => "it has no context at all".to_owned(),
        known => format!("it has {}", known.join(", ")),
    }
}

fn forbidden(cluster: &str, resources: &[String], says: &str) -> String {
    let all = RESOURCES.map(|r| r.qualified()).join(",");
    let mut text = format!(
        "cluster/{cluster}: may not list {} in all namespaces, and without it no answer is right",
        resources.join(", ")
    );
    if !says.is_empty() {
        _ = write!(text, "\n  the server says: {says}");
    }
    _ = write!(
        text,
        "\n  whoever administers it can permit it:\
         \n    kubectl create clusterrole portcullis-read --verb=list --resource={all}\
         \n    kubectl create clusterrolebinding portcullis-read --clusterrole=portcullis-read --user=NAME"
    );
    text
}

type Cause<'e> = &'e (dyn StdError + 'static);

fn causes(error: Cause<'_>) -> impl Iterator<Item = Cause<'_>> {
    fn next<'e>(error: &Cause<'e>) -> Option<Cause<'e>> {
        (**error).source()
    }
    std::iter::successors(Some(error), next)
}

/// An error of this type, if there is one among the causes.
fn find<T: StdError + 'static>(error: Cause<'_>) -> Option<&T> {
    causes(error).find_map(|e| e.downcast_ref())
}

/// The first cause. What stands around it says where in the client it happened.
fn innermost(error: Cause<'_>) -> String {
    causes(error).last().unwrap_or(error).to_string()
}
