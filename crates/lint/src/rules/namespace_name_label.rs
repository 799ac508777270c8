//! A hand-set label where the one that always exists would do.

use portcullis_core::labels::{Operator, Selector};
use portcullis_core::model::{NAMESPACE_NAME_LABEL, Peer};
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "namespace-name-label",
    severity: Severity::Warning,
    what: "A namespace is selected by a label `name`, which exists only where somebody set it.",
    why: "Every namespace carries its name in the label `kubernetes.io/metadata.name`, set by the API \
          server and not to be forged. A label `name` is there only if somebody thought of it; without \
          it the peer matches nobody. Nothing is said if a namespace of the input has the label.",
    example: "
ingress:
  - from:
      - namespaceSelector:
          matchLabels: {name: monitoring}
",
    fix: "Write `kubernetes.io/metadata.name` instead of `name`.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        for (i, peer) in rule.rule.peers.iter().enumerate() {
            let Peer::Pods { namespaces: Some(selector), .. } = peer else { continue };
            let Some((value, field)) = name_label(selector) else { continue };
            let labelled =
                |labels: &portcullis_core::labels::Labels| labels.get("name") == Some(value);
            if context.cluster.namespaces.values().any(labelled) {
                continue;
            }
            let path = format!("{}.namespaceSelector.{field}", rule.peer_path(i));
            let there = context.cluster.namespaces.contains_key(value);
            let message = match there {
                true => format!("namespace {value} has no label `name`, so this does not match it"),
                false => "a label `name` is on a namespace only if somebody set it".to_owned(),
            };
            let help =
                format!("write `{NAMESPACE_NAME_LABEL}: {value}`, which every namespace has");
            report.policy(rule.policy, path, message, help);
        }
    }
}

/// The value asked of the label `name`, and the field that asks.
fn name_label(selector: &Selector) -> Option<(&String, String)> {
    if let Some(value) = selector.match_labels.get("name") {
        return Some((value, "matchLabels[name]".to_owned()));
    }
    selector.match_expressions.iter().enumerate().find_map(|(i, r)| match &r.operator {
        Operator::In(values) if r.key == "name" => {
            Some((values.first()?, format!("matchExpressions[{i}].key")))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, namespace, policy};

    fn with(selector: &str) -> String {
        let spec = "  podSelector: {}
  ingress:
    - from:
        - namespaceSelector:
            SELECTOR";
        policy("api", &spec.replace("SELECTOR", selector))
    }

    #[test]
    fn a_name_that_somebody_would_have_to_set_is_found() {
        let listed = with("matchExpressions: [{key: name, operator: In, values: [a, b]}]");
        assert_eq!(found(&listed), ["11:38 namespace-name-label"]);
        let there = with("matchLabels: {name: edge}") + &namespace("edge", "team: net");
        assert!(findings(&there)[0].message.contains("namespace edge has no label `name`"));
    }

    #[test]
    fn a_name_that_somebody_did_set_and_the_real_label_are_silent() {
        let set = with("matchLabels: {name: edge}") + &namespace("edge", "name: edge");
        assert!(found(&set).is_empty());
        assert!(found(&with("matchLabels: {kubernetes.io/metadata.name: edge}")).is_empty());
    }

    #[test]
    fn known_mistake_a_namespace_selected_by_a_hand_set_name_label() {
        assert_eq!(found(&with("matchLabels: {name: monitoring}")), ["11:33 namespace-name-label"]);
    }
}
