//! A hand-set label where the one that always exists would do.

use portcullis_core::labels::{Operator, Selector};
use portcullis_core::model::NAMESPACE_NAME_LABEL;
use portcullis_kube::{Part, Severity};

use crate::context::{Context, RuleRef};
use crate::fix::{Edit, steps};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "namespace-name-label",
    severity: Severity::Warning,
    what: "A namespace is selected by a label `name`, which exists only where somebody set it.",
    why: "Every namespace carries its name in the label `kubernetes.io/metadata.name`, set by the API \
          server and not to be forged. A label `name` is there only if somebody thought of it; without \
          it the peer matches nobody. Where the namespace of that name, and no other of the input, has \
          the label, it is a note, and `--fix` writes the other label.",
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
    for (rule, i, selector) in context.namespace_selectors() {
        let Some((value, field)) = name_label(selector) else { continue };
        let path = format!("{}.namespaceSelector.{field}", rule.peer_path(i));
        let namespaces = context.cluster.namespaces.iter();
        let mut labelled = namespaces.filter(|(_, labels)| labels.get("name") == Some(value));
        if let Some((first, _)) = labelled.next() {
            // Whoever else has it is meant, too.
            if first != value || labelled.next().is_some() || !context.knows_all_namespaces() {
                continue;
            }
            let message = "a label `name` is whatever somebody sets it to".to_owned();
            let help = format!("write `{NAMESPACE_NAME_LABEL}: {value}`, which nobody can set");
            let fix = renamed(context, &rule, i, selector);
            report.policy(rule.policy, path, message, help).note().fix = fix;
            continue;
        }
        let there = context.cluster.namespaces.contains_key(value);
        let message = match there {
            true => format!("namespace {value} has no label `name`, so this does not match it"),
            false => "a label `name` is on a namespace only if somebody set it".to_owned(),
        };
        let help = format!("write `{NAMESPACE_NAME_LABEL}: {value}`, which every namespace has");
        report.policy(rule.policy, path, message, help);
    }
}

/// The edit that asks for the other label, where the value stays the same.
fn renamed(
    context: &Context<'_>,
    rule: &RuleRef<'_>,
    peer: usize,
    selector: &Selector,
) -> Option<Edit> {
    if !selector.match_labels.contains_key("name") {
        return None;
    }
    let path = format!("{}.namespaceSelector.matchLabels.name", rule.peer_path(peer));
    let span = context.input.policy_span(rule.policy, &steps(&path)?, Part::Key)?;
    Some(Edit { span, text: NAMESPACE_NAME_LABEL.to_owned() })
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
    use crate::testing::{findings, fixed, found, namespace, notes, policy};

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
        assert!(found(&set).is_empty() && notes(&set).is_empty(), "namespace shop is not known");
        let other = with("matchLabels: {name: edge}") + &namespace("border", "name: edge");
        assert!(found(&other).is_empty());
        assert!(found(&with("matchLabels: {kubernetes.io/metadata.name: edge}")).is_empty());
    }

    #[test]
    fn a_label_that_selects_the_same_now_gets_a_note_and_a_fix() {
        let all = namespace("edge", "name: edge") + &namespace("shop", "");
        let yaml = with("matchLabels: {name: edge}") + &all;
        assert_eq!(notes(&yaml), ["11:33 namespace-name-label"]);
        let fixed = fixed(&yaml);
        let expected = "matchLabels: {kubernetes.io/metadata.name: edge}";
        assert!(fixed.contains(expected) && !fixed.contains("matchLabels: {name"), "{fixed}");
        assert!(notes(&fixed).is_empty());
        let two = with("matchLabels: {name: edge}") + &all + &namespace("b", "name: edge");
        assert!(notes(&two).is_empty());
    }

    #[test]
    fn known_mistake_a_namespace_selected_by_a_hand_set_name_label() {
        assert_eq!(found(&with("matchLabels: {name: monitoring}")), ["11:33 namespace-name-label"]);
    }
}
