//! Manifests as JSON, for those who send them on to an API server.

use serde_json::{Map, Number, Value as Json};

use crate::document::{self, Document, Visitor};
use crate::input::Input;
use crate::scalar::Resolved;
use crate::tree::{Entry, Node, Value};

impl Input {
    /// Every object of the input, in its order, as it was written. What cannot be parsed is among
    /// the diagnostics and not here.
    pub fn manifests(&self) -> Vec<Json> {
        let mut objects = Objects::default();
        for file in &self.files {
            for document in document::split(&file.text) {
                // What is wrong with it has been said when it was read.
                let _ = document::parse(&file.text, &document, &mut objects);
                objects.items.clear();
            }
        }
        objects.found
    }
}

#[derive(Default)]
struct Objects {
    found: Vec<Json>,
    /// Of the current document.
    items: Vec<Json>,
}

impl<'t> Visitor<'t> for Objects {
    fn item(&mut self, item: Node<'t>, _: &[Entry<'t>]) {
        self.items.push(json(&item));
    }

    fn root(&mut self, root: Node<'t>, _: Document) {
        let items = std::mem::take(&mut self.items);
        let is_list = root.get("kind").and_then(Node::text).is_some_and(|k| k.ends_with("List"));
        match is_list {
            true => self.found.extend(items),
            false if root.is_null() => {}
            false => self.found.push(json(&root)),
        }
    }

    fn restart(&mut self) {
        self.items.clear();
    }
}

fn json(node: &Node<'_>) -> Json {
    match &node.value {
        Value::List(items) => Json::Array(items.iter().map(json).collect()),
        Value::Map(entries) => {
            let entries = entries.iter().map(|entry| (entry.key.to_string(), json(&entry.node)));
            Json::Object(entries.collect::<Map<_, _>>())
        }
        Value::Tagged(_) => Json::Null,
        Value::Plain(_) | Value::Text(_) => match node.resolve() {
            Some(Resolved::Bool(value)) => Json::Bool(value),
            Some(Resolved::Int(value)) => Number::from_i128(value).map_or(Json::Null, Json::Number),
            Some(Resolved::Float(value)) => {
                Number::from_f64(value).map_or(Json::Null, Json::Number)
            }
            Some(Resolved::String(text)) => Json::String(text.to_owned()),
            Some(Resolved::Null) | None => Json::Null,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Options, Source, load};

    /// An unquoted `on` is a boolean to Kubernetes, also where it is a key.
    #[test]
    fn objects_are_given_back_as_kubernetes_reads_them() {
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tier: \"1\"}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: a}
  data: {on: yes please}
- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 0x50}]}}
";
        let source = Source::Text { name: "x".to_owned(), text: text.to_owned() };
        let found = load(&[source], &Options::default()).manifests();
        let expected = [
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": "shop", "labels": {"tier": "1"}}}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
                   "data": {"true": "yes please"}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"},
                   "spec": {"ports": [{"port": 80}]}}),
        ];
        assert_eq!(found, expected);
    }
}
