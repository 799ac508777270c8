//! What can go wrong before the first request.

use std::io;
use std::path::PathBuf;

/// Why a server did not start, or could not be told of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address to listen on.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate was made, and TLS will not have it.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The state of before could not be read, or no new one could be made.
    #[error("cannot keep the state in {}: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The kubeconfig could not be written.
    #[error("cannot write the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An object of a kind that is not served.
    #[error("no {kind} of {version} is served here")]
    NotServed {
        /// Its kind.
        kind: String,
        /// Its `apiVersion`.
        version: String,
    },
    /// An object that the API refuses.
    #[error("{kind} {name}: {why}")]
    Refused {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the API says.
        why: String,
    },
}
