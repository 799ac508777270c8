//! Which connections are to be reported.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::NodeProgram;
use crate::model::LogLevel;

/// What a node has to report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logged {
    /// Whether anything that is refused is reported.
    pub refused: bool,
    /// The addresses of the pods of this node whose allowed connections are reported too.
    pub allowed: BTreeSet<IpAddr>,
}

impl NodeProgram {
    /// A namespace says this level, or none (any more). Tells whether that is new.
    pub fn namespace_log(&mut self, name: &str, level: Option<LogLevel>) -> bool {
        let name = self.namespace_name(name);
        let Some(namespace) = self.namespaces.get_mut(&name) else { return false };
        let new = namespace.log != level;
        namespace.log = level;
        self.drop_if_empty(&name);
        new
    }

    /// What this node reports, where namespaces that say nothing have this level. It is of the last
    /// [`state`](NodeProgram::state).
    pub fn logged(&self, level: LogLevel) -> Logged {
        let levels = || self.namespaces.values().map(|namespace| namespace.log.unwrap_or(level));
        let mut logged = Logged {
            refused: level > LogLevel::None || levels().any(|level| level > LogLevel::None),
            allowed: BTreeSet::new(),
        };
        if level == LogLevel::All || levels().any(|level| level == LogLevel::All) {
            let all = self.state.endpoints.keys().filter(|address| {
                let pod = self.claims.owner(**address).and_then(|pod| self.pods.get(pod));
                let namespace = pod.and_then(|pod| self.namespaces.get(&pod.namespace));
                namespace.is_some_and(|known| known.log.unwrap_or(level) == LogLevel::All)
            });
            logged.allowed = all.copied().collect();
        }
        logged
    }
}
