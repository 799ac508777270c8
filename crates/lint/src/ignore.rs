//! Findings that the input asks not to see.
//!
//! An annotation of the policy, `portcullis.dev/ignore: "rule-id,rule-id"`, or a comment,
//! `# portcullis:ignore rule-id`, on the line of the finding or on the line above.

use portcullis_kube::{Input, Location};

use crate::finding::Finding;

pub(crate) const ANNOTATION: &str = "portcullis.dev/ignore";
const COMMENT: &str = "portcullis:ignore";

/// Whether the input asks for this finding to be ignored.
pub(crate) fn ignored(input: &Input, finding: &Finding) -> bool {
    let annotated = finding
        .policy
        .and_then(|policy| input.policy_text(policy, &["metadata", "annotations", ANNOTATION]))
        .is_some_and(|list| names(&list, finding.rule));
    annotated || finding.location.as_ref().is_some_and(|at| commented(input, at, finding.rule))
}

fn commented(input: &Input, at: &Location, rule: &str) -> bool {
    let comment = |line: &str| Some(line.split_once('#')?.1.split_once(COMMENT)?.1.to_owned());
    let own = input.line(at);
    let above = Location { line: at.line.saturating_sub(1), ..at.clone() };
    // Above it, only a line that is nothing but the comment: another would be about itself.
    let above = input.line(&above).filter(|line| line.trim_start().starts_with('#'));
    [own, above].into_iter().flatten().filter_map(comment).any(|list| names(&list, rule))
}

fn names(list: &str, rule: &str) -> bool {
    listed(list).any(|name| name == rule)
}

/// The names in a list.
pub(crate) fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ' ']).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::testing::found;

    const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
  annotations: {ANNOTATION}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
    ABOVE
    - from: [] # BESIDE
";

    fn with(place: &str, text: &str) -> Vec<String> {
        let yaml = POLICY.replace(place, text);
        found(&yaml.replace("ANNOTATION", "").replace("ABOVE", "# a remark"))
    }

    #[test]
    fn a_finding_is_ignored_by_annotation_and_by_comment() {
        assert_eq!(with("-", "-"), ["13:7 allows-everything"]);
        let annotation = "portcullis.dev/ignore: \"extra-dash, allows-everything\"";
        assert!(with("ANNOTATION", annotation).is_empty());
        assert!(with("BESIDE", "portcullis:ignore allows-everything").is_empty());
        assert!(with("ABOVE", "# portcullis:ignore allows-everything").is_empty());
    }

    #[test]
    fn another_rule_named_there_ignores_nothing() {
        assert_eq!(with("BESIDE", "portcullis:ignore extra-dash").len(), 1);
        assert_eq!(with("ANNOTATION", "portcullis.dev/ignore: extra-dash").len(), 1);
    }
}
