//! Objects in the protocol buffers encoding, which kubectl uses for what it makes itself
//! (`kubectl create namespace`). Answers are always JSON, which its clients take too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::schema::{self, Field, Type};

pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Lists and objects within each other; those of the API need about 10.
const MAX_DEPTH: usize = 40;

/// Reads an object of a type. On error, what cannot be read.
pub(crate) fn read(kind: &'static str, body: &[u8]) -> Result<Value, String> {
    let envelope = body.strip_prefix(MAGIC).ok_or("the body is no encoded Kubernetes object")?;
    let mut object = json!({});
    let (mut api_version, mut has_kind) = (String::new(), String::new());
    for field in fields(envelope)? {
        match field {
            (1, Wire::Bytes(types)) => {
                for field in fields(types)? {
                    match field {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => has_kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) if has_kind.is_empty() || has_kind == kind => {
                object = message(kind, raw, 0)?;
            }
            _ => {}
        }
    }
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(has_kind);
    Ok(object)
}

/// A value as it is on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Wire<'_>)>, String> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let wire = match tag & 7 {
            0 => Wire::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| SHORT)?;
                let (value, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
                bytes = rest;
                Wire::Bytes(value)
            }
            other => return Err(format!("the body has a field of the unknown wire type {other}")),
        };
        fields.push((tag >> 3, wire));
    }
    Ok(fields)
}

const SHORT: &str = "the body ends within a field";

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(SHORT)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("the body has a number that is too long".to_owned())
}

fn string(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "the body has text that is not UTF-8".to_owned())
}

fn message(kind: &'static str, bytes: &[u8], depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("the body is nested too deeply".to_owned());
    }
    let known = &schema::fields(kind).fields;
    let mut object = Map::new();
    for (number, wire) in fields(bytes)? {
        let of = known.iter().find(|field| field.number != 0 && u64::from(field.number) == number);
        let Some(Field { name, kind: of, optional, .. }) = of else {
            return Err(format!("field {number} of {kind} is not read in protocol buffers"));
        };
        // HTTP rules are one message further in than they are in JSON.
        let wire = match (kind, *name, wire) {
            ("IngressRule", "http", Wire::Bytes(bytes)) => {
                match fields(bytes)?.into_iter().next() {
                    Some((1, wire)) => wire,
                    _ => continue,
                }
            }
            (_, _, wire) => wire,
        };
        match of {
            Type::List(of, _) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                if let (Some(list), Some(item)) = (list.as_array_mut(), value(of, wire, depth)?) {
                    list.push(item);
                }
            }
            Type::Map(of) => {
                let Wire::Bytes(entry) = wire else { continue };
                let map = object.entry(*name).or_insert_with(|| json!({}));
                let (key, item) = map_entry(of, entry, depth)?;
                map[key] = item;
            }
            of => match value(of, wire, depth)? {
                Some(zero) if !optional && (zero == 0 || zero == false) => {}
                Some(value) => drop(object.insert((*name).to_owned(), value)),
                None => {}
            },
        }
    }
    Ok(Value::Object(object))
}

fn map_entry(of: &Type, entry: &[u8], depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut item) = (String::new(), json!(""));
    for field in fields(entry)? {
        match field {
            (1, Wire::Bytes(bytes)) => key = string(bytes)?,
            (2, wire) => item = value(of, wire, depth)?.unwrap_or_default(),
            _ => {}
        }
    }
    Ok((key, item))
}

fn value(kind: &Type, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    Ok(Some(match (kind, wire) {
        (Type::String, Wire::Bytes(bytes)) => json!(string(bytes)?),
        (Type::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        // Two's complement.
        (Type::Integer, Wire::Number(number)) => json!(number.cast_signed()),
        (Type::Bool, Wire::Number(number)) => json!(number != 0),
        (Type::Struct(name), Wire::Bytes(bytes)) => message(name, bytes, depth + 1)?,
        (Type::Quantity, Wire::Bytes(bytes)) => match fields(bytes)?.into_iter().next() {
            Some((1, Wire::Bytes(text))) => json!(string(text)?),
            _ => return Ok(None),
        },
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        // Times are the server's to set.
        (Type::Time, _) => return Ok(None),
        _ => return Err("the body has a field of another type than the API".to_owned()),
    }))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_string, mut number, mut text) = (false, 0, String::new());
    for field in fields(bytes)? {
        match field {
            (1, Wire::Number(kind)) => is_string = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_string { json!(text) } else { json!(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_map_as_kubectl_sends_it() {
        let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01x\x12\x00\
                     \x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00\x12\x06\x0a\x01a\x12\x01b";
        let mut object = read("ConfigMap", body).expect("a ConfigMap");
        schema::decode("ConfigMap", &mut object);
        let expected = json!({
            "metadata": {"name": "x"}, "data": {"a": "b"},
            "apiVersion": "v1", "kind": "ConfigMap",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn what_is_cut_off_is_refused_wherever_it_ends() {
        let whole = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x03\x0a\x01x";
        for end in 0..whole.len() {
            // Between two fields an object may end: then it is another one.
            if ![4, 21].contains(&end) {
                assert!(read("ConfigMap", &whole[..end]).is_err(), "{end}");
            }
        }
    }
}
