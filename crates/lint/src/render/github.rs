//! For GitHub Actions: workflow commands, which it shows beside the lines of a pull request.

use portcullis_kube::Severity;

use crate::finding::Finding;

/// One workflow command for a finding.
pub fn github(finding: &Finding) -> String {
    let command = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let place = finding.location.as_ref().map_or(String::new(), |at| match at.line {
        0 => format!("file={},", property(&at.file)),
        line => format!("file={},line={line},col={},", property(&at.file), at.column),
    });
    let object = finding.object.as_ref().map_or(String::new(), |object| format!("{object}: "));
    let help = if finding.help.is_empty() { "" } else { "\nhelp: " };
    let text = data(&format!("{object}{}{help}{}", finding.message, finding.help));
    format!("::{command} {place}title={}::{text}\n", property(finding.rule))
}

/// As the runner unescapes what is after the second pair of colons.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// The same for the value of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, policy};

    #[test]
    fn a_finding_is_a_workflow_command_on_one_line() {
        let found = findings(&policy("web", "  podSelector: {}\n  ingress:\n    - ports: []"));
        let warning = found.iter().find(|f| f.path.ends_with("ports")).unwrap();
        let expected = "::warning file=test.yaml,line=9,col=7,title=allows-everything::networkpolicy \
                        shop/web: an empty `ports` allows every port and protocol%0Ahelp: list the \
                        ports, or remove `ports` to say that all are meant\n";
        assert_eq!(super::github(warning), expected);
    }

    #[test]
    fn what_would_end_a_property_is_escaped() {
        assert_eq!(super::property("a:b,c%"), "a%3Ab%2Cc%25");
    }
}
