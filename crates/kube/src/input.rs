//! What was read, and where each field of it stands.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::api;
use portcullis_core::model::{Cluster, Policy};

use crate::annotations::Annotation;
use crate::callers::Caller;
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::object::{Place, reread};
use crate::source::TextFile;
use crate::tree::Position;

/// The state that manifests describe, and what is to be said about them.
#[derive(Debug, Default)]
pub struct Input {
    /// The namespace of objects and names that give none.
    pub namespace: String,
    /// The state. Invalid policies are not in it: see [`Input::policies`].
    pub cluster: Cluster,
    /// Every NetworkPolicy, valid or not, in input order.
    pub policies: Vec<ReadPolicy>,
    /// The findings, in input order; those about several objects come last.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects were read, by kind.
    pub read: BTreeMap<&'static str, usize>,
    /// How many objects were passed over, by kind, with the group where it is not one of
    /// Kubernetes' own: `ConfigMap`, `NetworkPolicy.projectcalico.org`.
    pub passed_over: BTreeMap<String, usize>,
    /// Namespace and name of those that are none of Kubernetes' own: something may make pods of them.
    pub custom: BTreeSet<(String, String)>,
    /// Who calls pods from outside their policies, as far as the input says.
    pub callers: Vec<Caller>,
    /// The annotations of Portcullis' own.
    pub annotations: Vec<Annotation>,
    pub(crate) files: Vec<TextFile>,
    pub(crate) places: Places,
}

/// A NetworkPolicy of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPolicy {
    /// As written. What could not be decoded is absent from it, so it means nothing if there is
    /// no index.
    pub raw: api::NetworkPolicy,
    /// What it means.
    pub meaning: Meaning,
}

impl ReadPolicy {
    /// Its index in the policies of the cluster; `None` if anything is wrong with it.
    pub fn index(&self) -> Option<usize> {
        match self.meaning {
            Meaning::Valid(index) => Some(index),
            Meaning::Closed(_) => None,
        }
    }
}

/// What a NetworkPolicy of the input means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing is wrong with it: it is the policy of this index in the cluster.
    Valid(usize),
    /// Something is wrong, which an error says, and it is not in the cluster. This is its closed
    /// reading: it isolates at least what its author can have meant, and what cannot be read
    /// allows nothing (SEMANTICS 22).
    Closed(Box<Policy>),
}

/// An object of [`Input::cluster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectRef<'a> {
    /// The policy of this index.
    Policy(usize),
    /// The pod of this index. Its fields are those of the template if it comes from a workload.
    Pod(usize),
    /// The node of this index.
    Node(usize),
    /// The Service of this index.
    Service(usize),
    /// The namespace of this name.
    Namespace(&'a str),
}

/// Where the objects of the cluster are, by the same indices.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) policies: Vec<Place>,
    pub(crate) pods: Vec<PodPlace>,
    pub(crate) nodes: Vec<Place>,
    pub(crate) services: Vec<Place>,
    pub(crate) namespaces: BTreeMap<String, Place>,
}

#[derive(Debug)]
pub(crate) struct PodPlace {
    pub(crate) place: Place,
    /// The path of the pod template, for a pod that a workload stands for.
    pub(crate) template: Option<&'static str>,
}

impl Input {
    /// Whether there is an error among the findings.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// What each of [`Input::policies`] means.
    pub fn meanings(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().map(|policy| match &policy.meaning {
            Meaning::Valid(index) => &self.cluster.policies[*index],
            Meaning::Closed(closed) => closed,
        })
    }

    /// Where a field of an object stands, such as `spec.ingress[0].from[1].podSelector` or
    /// `metadata.labels[app]`: the value if it is a scalar, the key of a list or map. A field that
    /// is absent is where the nearest one around it stands, and the empty path is the object.
    /// `None` if there is no such object in the input.
    ///
    /// This parses the document again, so it is for messages and not for loops.
    pub fn locate(&self, object: ObjectRef<'_>, path: &str) -> Option<Location> {
        let (place, template) = match object {
            ObjectRef::Policy(i) => (self.places.policies.get(i)?, None),
            ObjectRef::Pod(i) => self.places.pods.get(i).map(|p| (&p.place, p.template))?,
            ObjectRef::Node(i) => (self.places.nodes.get(i)?, None),
            ObjectRef::Service(i) => (self.places.services.get(i)?, None),
            ObjectRef::Namespace(name) => (self.places.namespaces.get(name)?, None),
        };
        let file = self.files.get(place.file)?;
        if file.live {
            let place = [&*file.name, path].join(" ");
            return Some(Location { file: place.trim_end().into(), line: 0, column: 0 });
        }
        let own = path.is_empty() || path == "metadata.name" || path == "metadata.namespace";
        let at = match template.filter(|_| !own) {
            Some(template) => self.find(place, &format!("{template}.{path}")),
            None => self.find(place, path),
        };
        Some(self.location_at(place, at?))
    }

    /// The text of a scalar field of a policy, by its path; `None` where it is absent or no string.
    ///
    /// This parses the document again, so it is for messages and not for loops.
    pub fn policy_text(&self, policy: usize, path: &[&str]) -> Option<String> {
        let place = self.places.policies.get(policy)?;
        let tree = reread(&self.files.get(place.file)?.text, place)?;
        path.iter().try_fold(&tree, |node, key| node.get(key))?.text().map(str::to_owned)
    }

    /// The document that a policy is in, comments included, and the number of its first line.
    /// `None` for a live policy: nobody wrote that text.
    pub fn policy_document(&self, policy: usize) -> Option<(u32, &str)> {
        let place = self.places.policies.get(policy)?;
        let file = self.files.get(place.file).filter(|file| !file.live)?;
        let text = file.text.get(place.document.range.clone())?;
        Some((place.document.origin.line, text))
    }

    /// The line that a location is on, without its line break.
    pub fn line(&self, location: &Location) -> Option<&str> {
        if location.line == 0 {
            return None;
        }
        let file = self.files.iter().find(|f| f.name == location.file)?;
        let mut rest = &*file.text;
        for _ in 1..location.line {
            let end = rest.find(['\n', '\r'])?;
            let length = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
            rest = &rest[end + length..];
        }
        rest.split(['\n', '\r']).next()
    }

    pub(crate) fn find(&self, place: &Place, path: &str) -> Option<Position> {
        if path.is_empty() {
            return Some(place.at);
        }
        let text = &self.files.get(place.file)?.text;
        reread(text, place).map(|tree| tree.find(path))
    }

    pub(crate) fn location(&self, place: &Place) -> Location {
        self.location_at(place, place.at)
    }

    /// A position in an object's file; in the file as a whole for a live object, whose text nobody
    /// has seen.
    pub(crate) fn location_at(&self, place: &Place, at: Position) -> Location {
        let TextFile { name, live, .. } = &self.files[place.file];
        let (line, column) = if *live { (0, 0) } else { (at.line, at.column) };
        Location { file: name.clone(), line, column }
    }
}
