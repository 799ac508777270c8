//! Why the plugin could not do what it was asked, with the codes of the CNI specification.

use std::io;

use serde_json::json;

/// A reason. The numbers are those of the specification, except 100, which is ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// 1: the version of the configuration.
    #[error("{0}")]
    Version(String),
    /// 2: a field with a value that is not known.
    #[error("{key} is {value}, and can be {known}")]
    Field {
        /// Its name.
        key: &'static str,
        /// What was found.
        value: String,
        /// What is known.
        known: &'static str,
    },
    /// 4: the environment.
    #[error("{0}")]
    Environment(String),
    /// 5: reading or writing.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the machine answered.
        source: io::Error,
    },
    /// 6: what came is no JSON, or not the JSON it should be.
    #[error("cannot read {what}: {source}")]
    Decode {
        /// What was read.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// 7: a configuration that cannot work.
    #[error("{0}")]
    Configuration(String),
    /// 11: it may work later.
    #[error("{0}")]
    TryAgain(String),
    /// 50: no pod can be added.
    #[error("{0}")]
    Unavailable(String),
    /// 51: no pod can be added, and those that are there may not have what they should.
    #[error("{0}")]
    Limited(String),
    /// 100: the policies of a pod are not in force.
    #[error("{0}")]
    NotEnforced(String),
}

impl Error {
    /// The code of the specification.
    pub fn code(&self) -> u32 {
        match self {
            Error::Version(_) => 1,
            Error::Field { .. } => 2,
            Error::Environment(_) => 4,
            Error::Io { .. } => 5,
            Error::Decode { .. } => 6,
            Error::Configuration(_) => 7,
            Error::TryAgain(_) => 11,
            Error::Unavailable(_) => 50,
            Error::Limited(_) => 51,
            Error::NotEnforced(_) => 100,
        }
    }

    /// What the runtime reads from standard output, in this version of the specification.
    pub fn json(&self, version: &str) -> String {
        let msg = self.to_string();
        json!({"cniVersion": version, "code": self.code(), "msg": msg}).to_string()
    }
}
