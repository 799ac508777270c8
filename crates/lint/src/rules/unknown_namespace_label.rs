//! A namespace label that no namespace has.

use std::collections::BTreeSet;

use portcullis_core::labels::{Labels, Operator, Selector};
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
        for Asked { field, key, values } in asked(selector) {
            // A name that is not in the input is that of another team, as a rule; the label `name`
            // has a rule of its own.
            let another = key == NAMESPACE_NAME_LABEL || key == "name";
            let has = |labels: &Labels| labels.get(key).is_some_and(|v| values.contains(v));
            if another || namespaces.values().any(has) {
                continue;
            }
            let path = format!("{}.namespaceSelector.{field}", rule.peer_path(i));
            let others: BTreeSet<&str> =
                namespaces.values().filter_map(|l| l.get(key)).map(String::as_str).collect();
            let wanted = values.join("` or `");
            let message = format!("no namespace of the input has the label `{key}: {wanted}`");
            let named = values.iter().find(|value| namespaces.contains_key(*value));
            let help = if let Some(name) = named {
                format!("write `{NAMESPACE_NAME_LABEL}: {name}` for the namespace of that name")
            } else if others.is_empty() {
                format!("label the namespace, or write `{NAMESPACE_NAME_LABEL}: NAME`")
            } else {
                let others: Vec<_> = others.iter().copied().collect();
                format!("the values that namespaces have: {}", others.join(", "))
            };
            let finding = report.policy(rule.policy, path, message, help);
            if named.is_none() && others.is_empty() {
                finding.note();
            }
        }
    }
}

/// A label that a selector asks for, with the values that it takes, and the field that asks.
struct Asked<'a> {
    field: String,
    key: &'a String,
    values: &'a [String],
}

fn asked(selector: &Selector) -> impl Iterator<Item = Asked<'_>> {
    let labels = selector.match_labels.iter().map(|(key, value)| Asked {
        field: format!("matchLabels[{key}]"),
        key,
        values: std::slice::from_ref(value),
    });
    let expressions = selector.match_expressions.iter().enumerate();
    labels.chain(expressions.filter_map(|(i, r)| match &r.operator {
        Operator::In(values) => {
            Some(Asked { field: format!("matchExpressions[{i}].values"), key: &r.key, values })
        }
        _ => None,
    }))
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
    fn a_list_of_values_none_of_which_a_namespace_has_is_found() {
        let with = |values: &str| {
            with("LABEL").replace(
                "matchLabels: {LABEL}",
                &format!("matchExpressions: [{{key: stage, operator: In, values: [{values}]}}]"),
            )
        };
        let yaml = with("production, live") + &namespace("shop", "stage: prod");
        assert_eq!(found(&yaml), ["11:59 unknown-namespace-label"]);
        let yaml = with("production, prod") + &namespace("shop", "stage: prod");
        assert!(found(&yaml).is_empty());
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
