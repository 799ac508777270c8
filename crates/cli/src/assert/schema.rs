//! The JSON schema of files of tests, by which editors complete and check them.

/// The schema, as it is committed.
pub(super) const SCHEMA: &str = include_str!("../../../../docs/test.schema.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use portcullis_kube::{Content, Options, Source, Value, read_values};
    use serde_json::{Value as Json, json};

    use super::super::file::{ASSERTIONS, FILE, OUTSIDE, SELECTION, read};
    use super::*;

    fn schema() -> Json {
        serde_json::from_str(SCHEMA).unwrap()
    }

    /// Whether a value is as a schema wants it. Knows the words that ours uses, and no other.
    fn is_valid(schema: &Json, value: &Json, root: &Json) -> bool {
        let valid = |schema: &Json, value: &Json| is_valid(schema, value, root);
        let object = value.as_object();
        schema.as_object().unwrap().iter().all(|(word, rule)| match word.as_str() {
            "$schema" | "title" | "description" | "definitions" => true,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/definitions/").unwrap();
                valid(&root["definitions"][name], value)
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64(),
                other => panic!("unknown type {other}"),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "anyOf" => rule.as_array().unwrap().iter().any(|rule| valid(rule, value)),
            "oneOf" => {
                rule.as_array().unwrap().iter().filter(|rule| valid(rule, value)).count() == 1
            }
            "required" => rule.as_array().unwrap().iter().all(|name| {
                object.is_none_or(|object| object.contains_key(name.as_str().unwrap()))
            }),
            "properties" => object.is_none_or(|object| {
                let known =
                    object.iter().filter_map(|(name, value)| Some((rule.get(name)?, value)));
                known.into_iter().all(|(rule, value)| valid(rule, value))
            }),
            "additionalProperties" => object.is_none_or(|object| {
                let known = |name: &str| schema["properties"].get(name).is_some();
                let mut others = object.iter().filter(|(name, _)| !known(name));
                others.all(|(_, value)| rule.is_object() && valid(rule, value))
            }),
            "items" => value.as_array().is_none_or(|items| items.iter().all(|i| valid(rule, i))),
            "minItems" => value.as_array().is_none_or(|i| i.len() as u64 >= rule.as_u64().unwrap()),
            "minProperties" => object.is_none_or(|o| o.len() as u64 >= rule.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|s| s.len() as u64 >= rule.as_u64().unwrap()),
            "minimum" => value.as_i64().is_none_or(|n| n >= rule.as_i64().unwrap()),
            "maximum" => value.as_i64().is_none_or(|n| n <= rule.as_i64().unwrap()),
            other => panic!("the schema has a word that this test does not know: {other}"),
        })
    }

    fn plain(value: &Value) -> Json {
        match &value.content {
            Content::Null | Content::Other => Json::Null,
            Content::Bool(value) => json!(value),
            Content::Integer(value) => json!(i64::try_from(*value).unwrap()),
            Content::Text(text) => json!(text),
            Content::List(items) => items.iter().map(plain).collect(),
            Content::Map(fields) => {
                Json::Object(fields.iter().map(|f| (f.name.clone(), plain(&f.value))).collect())
            }
        }
    }

    /// What the schema and what the reader say of a file.
    fn both(source: Source) -> (bool, Vec<String>) {
        let (values, mut diagnostics) = read_values(&[source], &Options::default());
        let valid = values.iter().all(|value| is_valid(&schema(), &plain(value), &schema()));
        read(&values, &mut diagnostics);
        (valid, diagnostics.iter().map(ToString::to_string).collect())
    }

    fn files(below: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.lines().any(|line| line == "tests:").then_some(path));
            }
        }
    }

    #[test]
    fn the_schema_has_the_fields_that_the_reader_knows() {
        let names = |schema: &Json| {
            let properties = schema["properties"].as_object().unwrap();
            properties.keys().cloned().collect::<BTreeSet<_>>()
        };
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let schema = schema();
        let definitions = &schema["definitions"];
        assert_eq!(names(&schema), set(FILE));
        assert_eq!(names(&definitions["selection"]), set(SELECTION));
        assert_eq!(names(&definitions["outside"]), set(OUTSIDE));
        let mut of_test = vec!["name"];
        for (keyword, fields, needed) in ASSERTIONS {
            of_test.push(keyword);
            assert_eq!(names(&definitions[keyword]), set(fields), "{keyword}");
            assert_eq!(definitions[keyword]["required"], json!(needed), "{keyword}");
        }
        assert_eq!(names(&definitions["test"]), set(&of_test));
    }

    #[test]
    fn every_file_of_tests_in_docs_and_examples_is_valid_for_both() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut found = Vec::new();
        files(&root.join("docs"), &mut found);
        files(&root.join("examples"), &mut found);
        assert!(found.len() >= 4, "{found:?}");
        let (mistaken, found): (Vec<PathBuf>, Vec<PathBuf>) =
            found.into_iter().partition(|path| path.ends_with("docs/mistaken.yaml"));
        for path in mistaken {
            let (valid, diagnostics) = both(Source::Path(path));
            assert!(!valid && !diagnostics.is_empty());
        }
        for path in found {
            assert_eq!(both(Source::Path(path.clone())), (true, Vec::new()), "{path:?}");
        }
    }

    #[test]
    fn what_the_schema_refuses_the_reader_refuses_too_and_the_other_way_round() {
        let allow = "- allow: {from: a/b, to: c/d, port: 80}\n";
        let good = [
            allow,
            "- name: x\n  deny: {from: {labels: {a: b}, orNone: true}, to: [a/b, outside], port: icmp}\n",
            "- deny: {from: all, to: {outside: 10.0.0.0/8, except: 10.1.0.0/16}, port: {allBut: [80, 1-9/udp]}}\n",
            "- reachable: {to: a/b, port: [80, dns], onlyFrom: {allBut: [a/c, 10.0.0.0/8]}}\n",
            "- reaches: {from: a/*, port: all, onlyTo: {namespaceLabels: {a: b}}, family: IPv6}\n",
            "- isolated: {pods: a/b, direction: both, because: a/policy}\n",
        ];
        for tests in good {
            let text = format!("tests:\n{tests}");
            let found = both(Source::Text { name: "t.yaml".to_owned(), text });
            assert_eq!(found, (true, Vec::new()), "{tests}");
        }
        let bad = [
            "[]",
            "\n- {}\n",
            "\n- name: x\n",
            "\n- name: ''\n  allow: {from: a/b, to: c/d, port: 80}\n",
            "\n- allow: {from: a/b, to: c/d, port: 0}\n",
            "\n- allow: {from: a/b, to: c/d, port: true}\n",
            "\n- allow: {from: a/b, to: c/d, port: []}\n",
            "\n- allow: {from: a/b, to: c/d, port: {allBut: []}}\n",
            "\n- allow: {from: [], to: c/d, port: 80}\n",
            "\n- allow: {from: '', to: c/d, port: 80}\n",
            "\n- allow: {from: {}, to: c/d, port: 80}\n",
            "\n- allow: {from: {orNone: true}, to: c/d, port: 80}\n",
            "\n- allow: {from: {labels: {}}, to: c/d, port: 80}\n",
            "\n- allow: {from: {labels: {a: 1}}, to: c/d, port: 80}\n",
            "\n- allow: {from: {allBut: a/b, labels: {a: b}}, to: c/d, port: 80}\n",
            "\n- allow: {from: {outside: 10.0.0.0/8, labels: {a: b}}, to: c/d, port: 80}\n",
            "\n- allow: {to: c/d, port: 80}\n",
            "\n- allow: {from: a/b, to: c/d, port: 80, onlyFrom: a/b}\n",
            "\n- allow: {from: a/b, to: c/d, port: 80, family: ipv4}\n",
            "\n- isolated: {pods: a/b, direction: up}\n",
            "\n- allow: {from: a/b, to: c/d, port: 80}\n  deny: {from: a/b, to: c/d, port: 80}\n",
        ];
        for tests in bad {
            let text = format!("tests: {tests}");
            let (valid, diagnostics) = both(Source::Text { name: "t.yaml".to_owned(), text });
            assert!(!valid, "the schema takes {tests}");
            assert!(!diagnostics.is_empty(), "the reader takes {tests}");
        }
    }
}
