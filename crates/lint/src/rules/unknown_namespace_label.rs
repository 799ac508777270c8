//! A namespace label that no namespace has.

use std::collections::BTreeSet;

use portcullis_core::model::NAMESPACE_NAME_LABEL;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};
use crate::rules::pod_label;

pub(crate) const RULE: Rule = Rule {
    id: "unknown-namespace-label",
    severity: Severity::Warning,
    what: "A namespaceSelector asks for a label that no namespace of the input has.",
    why: "The peer then matches nobody. It is a warning where a namespace of the input is called as \
          the label says, or has the key with other values, and a note otherwise, because the namespace \
          that is meant may not be in the input.",
    example: "
ingress:
  - from:
      - namespaceSelector:
          matchLabels: {stage: production} # the Namespace says `stage: prod`
",
    fix: "Write the label as the Namespace has it, or select it by `kubernetes.io/metadata.name`.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let namespaces = &context.cluster.namespaces;
    if namespaces.is_empty() {
        return;
    }
    for (rule, i, selector) in context.namespace_selectors() {
        if pod_label(context, selector).is_some() {
            continue;
        }
        for (key, value) in selector.match_labels.iter() {
            // A name that is not in the input is that of another team, as a rule; the label `name`
            // has a rule of its own.
            let another = key == NAMESPACE_NAME_LABEL || key == "name";
            if another || namespaces.values().any(|labels| labels.get(key) == Some(value)) {
                continue;
            }
            let path = format!("{}.namespaceSelector.matchLabels[{key}]", rule.peer_path(i));
            let values: BTreeSet<&str> =
                namespaces.values().filter_map(|l| l.get(key)).map(String::as_str).collect();
            let message = format!("no namespace of the input has the label `{key}: {value}`");
            let named = namespaces.contains_key(value);
            let help = if named {
                format!("write `{NAMESPACE_NAME_LABEL}: {value}` for the namespace of that name")
            } else if values.is_empty() {
                format!("label the namespace, or write `{NAMESPACE_NAME_LABEL}: NAME`")
            } else {
                let values: Vec<_> = values.iter().copied().collect();
                format!("the values that namespaces have: {}", values.join(", "))
            };
            let finding = report.policy(rule.policy, path, message, help);
            if !named && values.is_empty() {
                finding.note();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, namespace, notes, policy};

    fn with(label: &str) -> String {
        let spec = "  podSelector: {}
  ingress:
    - from:
        - namespaceSelector:
            matchLabels: {LABEL}";
        policy("api", &spec.replace("LABEL", label))
    }

    #[test]
    fn a_label_that_a_namespace_has_otherwise_is_found() {
        let yaml = with("stage: production") + &namespace("shop", "stage: prod");
        assert_eq!(found(&yaml), ["11:34 unknown-namespace-label"]);
        let yaml = with("ns: edge") + &namespace("edge", "");
        assert_eq!(found(&yaml), ["11:31 unknown-namespace-label"]);
    }

    #[test]
    fn a_namespace_that_may_be_elsewhere_gets_a_note_at_most() {
        let yaml = with("team: metrics") + &namespace("shop", "stage: prod");
        assert!(found(&yaml).is_empty());
        assert_eq!(notes(&yaml), ["11:33 unknown-namespace-label"]);
        let yaml = with("kubernetes.io/metadata.name: ingress") + &namespace("shop", "");
        assert!(found(&yaml).is_empty() && notes(&yaml).is_empty());
        assert!(notes(&with("team: metrics")).is_empty());
    }
}
