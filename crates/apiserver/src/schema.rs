//! The types of the API: which fields an object has, of what type, and how lists of them merge.
//!
//! One table answers strict decoding, strategic merge patches, server-side apply and OpenAPI.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    String,
    Time,
    /// In base64.
    Bytes,
    Integer,
    Bool,
    /// `500m`, `1Gi`, or a plain number.
    Quantity,
    IntOrString,
    Any,
    Map(Box<Type>),
    List(Box<Type>, Merge),
    /// A type of the table.
    Struct(&'static str),
}

/// How two lists become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Merge {
    /// The new one replaces the old one.
    Atomic,
    /// Each value once.
    Set,
    /// Item by item; items with these fields equal are the same item.
    Keys(Vec<&'static str>),
}

/// A field of a type.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    /// Replaced as a whole by server-side apply.
    pub(crate) atomic: bool,
    /// Its number in the protocol buffers encoding; 0 where it is not known.
    pub(crate) number: u32,
    /// Whether that encoding tells a zero that was given from none.
    pub(crate) optional: bool,
}

/// The fields of a type.
#[derive(Debug)]
pub(crate) struct Struct {
    pub(crate) fields: Vec<Field>,
}

impl Struct {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

static TYPES: LazyLock<HashMap<&'static str, Struct>> =
    LazyLock::new(|| read(include_str!("schema.txt")));

/// The fields of a type; none for a name that is not in the table.
pub(crate) fn fields(name: &str) -> &'static Struct {
    static NONE: Struct = Struct { fields: Vec::new() };
    TYPES.get(name).unwrap_or(&NONE)
}

fn read(text: &'static str) -> HashMap<&'static str, Struct> {
    let mut types: HashMap<&'static str, Struct> = HashMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ') {
            current = words.next().unwrap_or_default();
        }
        let of = types.entry(current).or_insert_with(|| Struct { fields: Vec::new() });
        of.fields.extend(words.filter_map(|word| {
            let (name, kind) = word.split_once(':')?;
            let (kind, number) = kind.split_once('=').unwrap_or((kind, "0"));
            let optional = kind.ends_with('?');
            let kind = kind.trim_end_matches('?');
            let (atomic, number) = (kind.ends_with('!'), number.parse().ok()?);
            Some(Field { name, atomic, kind: type_of(kind), number, optional })
        }));
    }
    types.remove("");
    types
}

fn type_of(text: &'static str) -> Type {
    match text.trim_end_matches('!') {
        "s" => Type::String,
        "t" => Type::Time,
        "y" => Type::Bytes,
        "i" => Type::Integer,
        "b" => Type::Bool,
        "q" => Type::Quantity,
        "x" => Type::IntOrString,
        "*" => Type::Any,
        text => match (text.strip_prefix('{'), text.strip_prefix('[')) {
            (Some(inner), _) => Type::Map(Box::new(type_of(inner.trim_end_matches('}')))),
            (_, Some(rest)) => {
                let (inner, merge) = rest.split_once(']').unwrap_or((rest, ""));
                let merge = match merge {
                    "" => Merge::Atomic,
                    "+" => Merge::Set,
                    keys => Merge::Keys(keys.split(',').collect()),
                };
                Type::List(Box::new(type_of(inner)), merge)
            }
            _ => Type::Struct(text),
        },
    }
}

/// What strict decoding has to say of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// `unknown field "spec.ingres"`: dropped, an error if the request says so.
    pub(crate) unknown: Vec<String>,
    /// A value of the wrong type, as Go words it: always an error.
    pub(crate) wrong: Option<String>,
}

/// Checks an object against a type, and leaves of it what the API server would keep: unknown
/// fields and nulls go, and so do empty lists, maps and strings, which the API takes for absent.
pub(crate) fn decode(kind: &'static str, object: &mut Value) -> Decoded {
    let mut decoded = Decoded::default();
    walk(&Type::Struct(kind), object, "", kind, &mut decoded);
    decoded
}

fn walk(kind: &Type, value: &mut Value, path: &str, owner: &str, out: &mut Decoded) {
    let fits = match (kind, &*value) {
        (_, Value::Null)
        | (Type::Any, _)
        | (
            Type::String | Type::Time | Type::Bytes | Type::IntOrString | Type::Quantity,
            Value::String(_),
        )
        | (Type::Bool, Value::Bool(_))
        | (Type::Quantity, Value::Number(_))
        | (Type::Map(_) | Type::Struct(_), Value::Object(_))
        | (Type::List(..), Value::Array(_)) => true,
        (Type::Integer | Type::IntOrString, Value::Number(n)) => n.is_i64(),
        _ => false,
    };
    if !fits {
        if out.wrong.is_none() {
            out.wrong = Some(format!(
                "json: cannot unmarshal {} into Go struct field {owner}.{path} of type {}",
                json_name(value),
                go_name(kind)
            ));
        }
        return;
    }
    match (kind, value) {
        (Type::Struct(name), Value::Object(map)) => {
            let known = fields(name);
            let names: Vec<String> = map.keys().cloned().collect();
            for key in names {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let Some(field) = known.field(&key) else {
                    out.unknown.push(format!("unknown field {path:?}"));
                    map.shift_remove(&key);
                    continue;
                };
                let Some(value) = map.get_mut(&key) else { continue };
                walk(&field.kind, value, &path, name, out);
                if is_absent(&field.kind, value) {
                    map.shift_remove(&key);
                }
            }
        }
        (Type::Map(of), Value::Object(map)) => {
            for (key, value) in map {
                walk(of, value, &format!("{path}.{key}"), owner, out);
                if value.is_null() && **of == Type::String {
                    *value = Value::String(String::new());
                }
            }
        }
        (Type::List(of, _), Value::Array(items)) => {
            for (i, item) in items.iter_mut().enumerate() {
                walk(of, item, &format!("{path}[{i}]"), owner, out);
                if item.is_null() {
                    *item = match **of {
                        Type::Struct(_) | Type::Map(_) => Value::Object(Map::new()),
                        Type::String => Value::String(String::new()),
                        _ => Value::Null,
                    };
                }
            }
        }
        _ => {}
    }
}

fn is_absent(kind: &Type, value: &Value) -> bool {
    match (kind, value) {
        (Type::Any, _) => value.is_null(),
        (_, Value::Null) => true,
        (Type::String, Value::String(text)) => text.is_empty(),
        (Type::List(..), Value::Array(items)) => items.is_empty(),
        (Type::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

fn json_name(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(n) if n.is_i64() => "number".to_owned(),
        Value::Number(n) => format!("number {n}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

fn go_name(kind: &Type) -> String {
    match kind {
        Type::String => "string".to_owned(),
        Type::Time => "v1.Time".to_owned(),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Integer => "int32".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::IntOrString => "intstr.IntOrString".to_owned(),
        Type::Any => "interface {}".to_owned(),
        Type::Map(of) => format!("map[string]{}", go_name(of)),
        Type::List(of, _) => format!("[]{}", go_name(of)),
        Type::Struct(name) => format!("v1.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_that_a_field_names_is_in_the_table() {
        fn named(kind: &Type) -> Option<&'static str> {
            match kind {
                Type::Struct(name) => Some(name),
                Type::Map(of) | Type::List(of, _) => named(of),
                _ => None,
            }
        }
        for (owner, of) in TYPES.iter() {
            for field in &of.fields {
                if let Some(name) = named(&field.kind) {
                    assert!(TYPES.contains_key(name), "{owner}.{}: no type {name}", field.name);
                }
                if let Type::List(of, Merge::Keys(keys)) = &field.kind {
                    let item = fields(named(of).expect("lists of objects have keys"));
                    for key in keys {
                        assert!(item.field(key).is_some(), "{owner}.{}: {key}", field.name);
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_api_does_not_have_is_named_by_its_path_and_dropped() {
        let mut object = json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "imag": 1}]}});
        let decoded = decode("Pod", &mut object);
        assert_eq!(decoded.unknown, [r#"unknown field "spec.containers[0].imag""#]);
        assert_eq!(object["spec"]["containers"], json!([{"name": "a"}]));
    }

    #[test]
    fn a_value_of_another_type_is_named_as_go_names_it() {
        let mut object = json!({"spec": {"replicas": "3"}});
        let wrong = decode("Deployment", &mut object).wrong.expect("a string is no number");
        assert_eq!(
            wrong,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of \
             type int32"
        );
    }

    #[test]
    fn an_empty_list_is_an_absent_one_and_an_empty_object_is_not() {
        let mut object = json!({"spec": {"podSelector": {}, "ingress": [], "egress": [{}]}});
        assert_eq!(decode("NetworkPolicy", &mut object), Decoded::default());
        assert_eq!(object, json!({"spec": {"podSelector": {}, "egress": [{}]}}));
    }
}
