//! SARIF 2.1.0, which code hosts and editors show beside the lines.

use std::path::Path;

use portcullis_kube::Location;
use serde_json::{Value, json};

use crate::finding::Finding;

/// One log of one run, with everything that was found and every rule that could have.
pub fn sarif(findings: &[Finding]) -> String {
    let rules = crate::rules();
    let descriptors: Vec<Value> = rules
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id,
                "shortDescription": {"text": rule.what},
                "fullDescription": {"text": rule.why},
                "help": {"text": rule.explanation(), "markdown": rule.page()},
                "defaultConfiguration": {"level": rule.severity.to_string()},
            })
        })
        .collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "portcullis",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": descriptors,
            }},
            "columnKind": "unicodeCodePoints",
            "results": findings.iter().map(result).collect::<Vec<_>>(),
        }],
    });
    format!("{log:#}\n")
}

fn result(finding: &Finding) -> Value {
    let mut message = finding.message.clone();
    if !finding.help.is_empty() {
        message += &format!("\nhelp: {}", finding.help);
    }
    let mut result = json!({
        "ruleId": finding.rule,
        "level": finding.severity.to_string(),
        "message": {"text": message},
    });
    // What the reader says has no rule here.
    if let Some(index) = crate::rules().iter().position(|rule| rule.id == finding.rule) {
        result["ruleIndex"] = json!(index);
    }
    let mut location = finding.location.as_ref().map_or(json!({}), place);
    if let Some(object) = &finding.object {
        let name = match finding.path.as_str() {
            "" => object.clone(),
            path => format!("{object}: {path}"),
        };
        location["logicalLocations"] = json!([{"fullyQualifiedName": name, "kind": "object"}]);
    }
    result["locations"] = json!([location]);
    let related = finding.related.iter().map(|related| {
        let mut location = place(&related.location);
        location["message"] = json!({"text": related.message});
        location
    });
    let related: Vec<Value> = related.collect();
    if !related.is_empty() {
        result["relatedLocations"] = json!(related);
    }
    result
}

fn place(at: &Location) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": uri(&at.file)}});
    if at.line > 0 {
        physical["region"] = json!({"startLine": at.line, "startColumn": at.column.max(1)});
    }
    json!({"physicalLocation": physical})
}

/// A path as a URI reference: relative as it is, absolute as a file.
fn uri(path: &str) -> String {
    let scheme = if Path::new(path).is_absolute() { "file://" } else { "" };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let path = path.strip_prefix("./").unwrap_or(path);
    let escaped = path.bytes().map(|b| match b {
        b if plain(b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    });
    format!("{scheme}{}", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Source, load};
    use serde_json::{Value, json};

    use crate::finding::Finding;
    use crate::testing::policy;

    /// What is wrong with a log by the schema.
    fn against_the_schema(log: &Value) -> Vec<String> {
        let schema = include_str!("../../tests/sarif/sarif-schema-2.1.0.json");
        let mut schema: Value = serde_json::from_str(schema).unwrap();
        // As published, the pattern of these two is no regular expression. No log here has them.
        for object in ["run", "toolComponent"] {
            let language = &mut schema["definitions"][object]["properties"]["language"];
            language.as_object_mut().unwrap().remove("pattern").unwrap();
        }
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        validator.iter_errors(log).map(|error| error.to_string()).collect()
    }

    fn log(name: &str, text: String) -> Value {
        let input = load(&[Source::Text { name: name.to_owned(), text }], &Options::default());
        let mut findings: Vec<Finding> = input.diagnostics.iter().map(Finding::from).collect();
        findings.extend(crate::lint(&input));
        serde_json::from_str(&super::sarif(&findings)).unwrap()
    }

    fn twice() -> String {
        let rule = "    - from: [{podSelector: {matchLabels: {app: web}}}]";
        policy("web", &format!("  podSelector: {{}}\n  ingress:\n    - from: []\n{rule}\n{rule}"))
    }

    #[test]
    fn a_log_is_valid_by_the_published_schema() {
        let names = ["web.yaml", "./a b/ü.yaml", "/etc/web.yaml", "<stdin>"];
        let texts = [twice(), String::new(), "a: [".to_owned(), "kind: Pod".to_owned()];
        for name in names {
            for text in &texts {
                let log = log(name, text.clone());
                assert_eq!(against_the_schema(&log), [""; 0], "{name}: {text}");
            }
        }
    }

    #[test]
    fn the_schema_refuses_what_is_no_log() {
        let mut log = log("web.yaml", twice());
        log["runs"][0]["results"][0]["level"] = json!("fatal");
        log["runs"][0]["tool"] = json!({});
        assert_eq!(against_the_schema(&log).len(), 2);
    }

    #[test]
    fn a_result_has_its_rule_its_level_its_place_and_the_others_that_matter() {
        let log = log("./a b.yaml", twice());
        let results = log["runs"][0]["results"].as_array().unwrap();
        let twice = results
            .iter()
            .find(|r| r["ruleId"] == "redundant-rule" && r["level"] == "warning")
            .unwrap();
        let expected = json!({
            "ruleId": "redundant-rule",
            "level": "warning",
            "message": {"text": "the same as spec.ingress[1], for any pod\nhelp: remove one of the two"},
            "ruleIndex": twice["ruleIndex"],
            "locations": [{
                "physicalLocation": {
                    "artifactLocation": {"uri": "a%20b.yaml"},
                    "region": {"startLine": 11, "startColumn": 7},
                },
                "logicalLocations": [{
                    "fullyQualifiedName": "networkpolicy shop/web: spec.ingress[2]",
                    "kind": "object",
                }],
            }],
            "relatedLocations": [{
                "physicalLocation": {
                    "artifactLocation": {"uri": "a%20b.yaml"},
                    "region": {"startLine": 10, "startColumn": 7},
                },
                "message": {"text": "networkpolicy shop/web: spec.ingress[1]"},
            }],
        });
        assert_eq!(*twice, expected);
        let rule = &log["runs"][0]["tool"]["driver"]["rules"]
            [twice["ruleIndex"].as_u64().unwrap() as usize];
        assert_eq!(rule["id"], "redundant-rule");
    }
}
