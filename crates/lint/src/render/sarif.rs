//! SARIF 2.1.0, which code hosts and editors show beside the lines.

use std::path::Path;

use portcullis_kube::{Input, Location};
use serde_json::{Value, json};

use crate::finding::Finding;
use crate::fix::Edit;

/// One log of one run, with everything that was found and every rule that could have. Of the edits
/// only these, which are safe, are offered as fixes.
pub fn sarif(input: &Input, findings: &[Finding], safe: &[&Edit]) -> String {
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
            "results": findings.iter().map(|f| result(input, f, safe)).collect::<Vec<_>>(),
        }],
    });
    format!("{log:#}\n")
}

fn result(input: &Input, finding: &Finding, safe: &[&Edit]) -> Value {
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
    let edit = finding.fix.as_ref().filter(|edit| safe.contains(edit));
    if let Some(fix) = edit.and_then(|edit| fix(input, edit)) {
        result["fixes"] = json!([fix]);
    }
    result
}

/// An edit as a change of one file.
fn fix(input: &Input, edit: &Edit) -> Option<Value> {
    let Edit { span, text } = edit;
    let (_, old) = input.texts().find(|(name, _)| **name == span.file)?;
    let (start, end) = span.bytes;
    let ((start_line, start_column), (end_line, end_column)) =
        (position(old.get(..start)?), position(old.get(..end)?));
    Some(json!({
        "description": {"text": format!("write `{text}` instead of `{}`", old.get(start..end)?)},
        "artifactChanges": [{
            "artifactLocation": {"uri": uri(&span.file)},
            "replacements": [{
                "deletedRegion": {
                    "startLine": start_line,
                    "startColumn": start_column,
                    "endLine": end_line,
                    "endColumn": end_column,
                },
                "insertedContent": {"text": text},
            }],
        }],
    }))
}

/// Line and column behind a text, both from 1.
fn position(text: &str) -> (usize, usize) {
    let line = text.rsplit(['\n', '\r']).next().unwrap_or_default();
    let bytes = text.as_bytes();
    let ends =
        |(i, b): &(usize, &u8)| **b == b'\n' || **b == b'\r' && bytes.get(i + 1) != Some(&b'\n');
    (1 + bytes.iter().enumerate().filter(ends).count(), 1 + line.chars().count())
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
        let mut findings = crate::reader_findings(&input);
        findings.extend(crate::lint(&input));
        let safe = crate::safe_edits(&input, &Options::default(), &findings);
        serde_json::from_str(&super::sarif(&input, &findings, &safe)).unwrap()
    }

    /// A block with host bits, which can be written as its network, behind a letter of two bytes.
    const HOST_BITS: &str = "# Offices.\r\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {name: offices, namespace: shop, annotations: {owner: Zoë}}, spec: {podSelector: \
         {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]}}\r\n";

    fn twice() -> String {
        let rule = "    - from: [{podSelector: {matchLabels: {app: web}}}]";
        policy("web", &format!("  podSelector: {{}}\n  ingress:\n    - from: []\n{rule}\n{rule}"))
    }

    #[test]
    fn a_log_is_valid_by_the_published_schema() {
        let names = ["web.yaml", "./a b/ü.yaml", "/etc/web.yaml", "<stdin>"];
        let texts = [&twice(), HOST_BITS, "", "a: [", "kind: Pod"];
        for name in names {
            for text in texts {
                let log = log(name, text.to_owned());
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
    fn an_editor_that_applies_a_fix_writes_what_fix_writes() {
        let log = log("offices.yaml", HOST_BITS.to_owned());
        let results = log["runs"][0]["results"].as_array().unwrap();
        let fixes = results.iter().filter_map(|result| result["fixes"].as_array());
        let fixes: Vec<&Value> = fixes.flatten().collect();
        let [fix] = fixes[..] else { panic!("{fixes:?}") };
        assert_eq!(fix["description"]["text"], "write `10.0.0.0/8` instead of `10.1.2.3/8`");
        let change = &fix["artifactChanges"][0];
        assert_eq!(change["artifactLocation"]["uri"], "offices.yaml");
        let replacement = &change["replacements"][0];
        let region = |key: &str| replacement["deletedRegion"][key].as_u64().unwrap() as usize - 1;
        let mut lines: Vec<Vec<char>> = HOST_BITS.lines().map(|l| l.chars().collect()).collect();
        assert_eq!(region("startLine"), region("endLine"));
        let inserted = replacement["insertedContent"]["text"].as_str().unwrap().chars();
        lines[region("startLine")].splice(region("startColumn")..region("endColumn"), inserted);
        let text: Vec<String> = lines.into_iter().map(|line| line.into_iter().collect()).collect();
        let expected = HOST_BITS.replace("10.1.2.3/8", "10.0.0.0/8");
        assert_eq!(text, expected.lines().collect::<Vec<_>>());
    }

    #[test]
    fn an_edit_that_is_not_safe_is_no_fix() {
        let source = Source::Text { name: "a.yaml".to_owned(), text: HOST_BITS.to_owned() };
        let input = load(&[source], &Options::default());
        let findings = crate::reader_findings(&input);
        assert!(
            super::sarif(&input, &findings, &[findings[0].fix.as_ref().unwrap()]).contains("fixes")
        );
        assert!(!super::sarif(&input, &findings, &[]).contains("\"fixes\""));
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
