//! JUnit XML, which build servers show as tests: one for each policy.

use std::collections::BTreeMap;
use std::fmt::Write;

use portcullis_kube::{Input, Severity};

use crate::finding::Finding;
use crate::render::xml_escaped as escaped;

/// One suite with a test for each policy of the input, and for whatever else findings are about.
/// A test fails if there is a finding of this weight or more; lighter ones are its output.
pub fn junit(input: &Input, findings: &[Finding], fail_on: Severity) -> String {
    let policies = input.policies.iter();
    let policies = policies.map(|p| format!("networkpolicy {}/{}", p.raw.namespace, p.raw.name));
    let mut cases: BTreeMap<String, Vec<&Finding>> = policies.map(|p| (p, Vec::new())).collect();
    for finding in findings {
        let case = match (&finding.object, &finding.location) {
            (Some(object), _) => object.clone(),
            (None, Some(at)) => at.file.to_string(),
            (None, None) => "the input".to_owned(),
        };
        cases.entry(case).or_default().push(finding);
    }
    let fails = |found: &[&Finding]| found.iter().any(|f| f.severity <= fail_on);
    let failures = cases.values().filter(|found| fails(found)).count();
    let counts = format!("tests=\"{}\" failures=\"{failures}\" errors=\"0\"", cases.len());
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"portcullis check\" {counts}>\n"
    );
    for (name, found) in cases {
        let file = found.iter().find_map(|f| f.location.as_ref()).map(|at| escaped(&at.file));
        let file = file.map_or(String::new(), |file| format!(" file=\"{file}\""));
        let name = escaped(&name);
        _ = write!(out, "    <testcase classname=\"portcullis check\" name=\"{name}\"{file}");
        if found.is_empty() {
            out.push_str("/>\n");
            continue;
        }
        out.push_str(">\n");
        let (failing, told): (Vec<&Finding>, Vec<&Finding>) =
            found.into_iter().partition(|f| f.severity <= fail_on);
        if let Some(first) = failing.first() {
            let (kind, message) = (first.rule, escaped(&first.message));
            _ = write!(out, "      <failure type=\"{kind}\" message=\"{message}\">");
            failing.iter().for_each(|f| out.push_str(&escaped(&lines(f))));
            out.push_str("</failure>\n");
        }
        if !told.is_empty() {
            out.push_str("      <system-out>");
            told.iter().for_each(|f| out.push_str(&escaped(&lines(f))));
            out.push_str("</system-out>\n");
        }
        out.push_str("    </testcase>\n");
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

fn lines(finding: &Finding) -> String {
    let place = finding.location.as_ref().map_or(String::new(), |at| format!("{at}: "));
    let mut text = format!("{place}{}[{}]: {}\n", finding.severity, finding.rule, finding.message);
    if !finding.help.is_empty() {
        _ = writeln!(text, "  help: {}", finding.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Severity, Source, load};

    use crate::testing::policy;

    #[test]
    fn a_policy_is_a_test_that_fails_by_what_weighs_enough() {
        let open = policy(
            "web",
            "  podSelector: {}\n  policyTypes: [Ingress]\n  ingress:\n    - from: []",
        );
        let closed = policy("api", "  podSelector: {}\n  policyTypes: [Ingress]");
        let text = format!("{open}---\n{closed}");
        let source = Source::Text { name: "a&b.yaml".to_owned(), text };
        let input = load(&[source], &Options::default());
        let findings = crate::lint(&input);
        let at = "a&amp;b.yaml:10:7: warning[allows-everything]: an empty `from` allows everybody, \
                  also from outside the cluster\n  help: name the peers, remove the rule to allow \
                  none, or remove `from` to say that all are meant\n";
        let strict = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuites tests=\"2\" failures=\"1\" errors=\"0\">
  <testsuite name=\"portcullis check\" tests=\"2\" failures=\"1\" errors=\"0\">
    <testcase classname=\"portcullis check\" name=\"networkpolicy shop/api\"/>
    <testcase classname=\"portcullis check\" name=\"networkpolicy shop/web\" file=\"a&amp;b.yaml\">
      <failure type=\"allows-everything\" message=\"an empty `from` allows everybody, also from outside the cluster\">{at}</failure>
    </testcase>
  </testsuite>
</testsuites>
"
        );
        assert_eq!(super::junit(&input, &findings, Severity::Warning), strict);
        let lenient = super::junit(&input, &findings, Severity::Error);
        assert!(lenient.contains(&format!("<system-out>{at}</system-out>")), "{lenient}");
        assert!(!lenient.contains("<failure"));
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        assert_eq!(super::escaped("<\"a\u{1}\" & b>"), "&lt;&quot;a\u{FFFD}&quot; &amp; b&gt;");
    }
}
