//! Two list items where one with both selectors was meant.

use portcullis_core::model::{NAMESPACE_NAME_LABEL, Peer};
use portcullis_kube::Severity;

use crate::context::{Context, RuleRef};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "extra-dash",
    severity: Severity::Warning,
    what: "A namespaceSelector and a podSelector stand side by side as two peers: either is enough.",
    why: "Two list items are an OR: all pods of those namespaces, and also the pods with those labels \
          in the policy's own namespace. One dash less makes it an AND: the pods with those labels in \
          those namespaces. Nothing is said where the pods of the input, or a comment (\"OR\", \
          \"either\", \"or else\"), show that OR is meant.",
    example: "
ingress:
  - from:
      - namespaceSelector:
          matchLabels: {kubernetes.io/metadata.name: production}
      - podSelector:
          matchLabels: {app: frontend}
",
    fix: "Remove the dash before `podSelector`, so that one list item holds both selectors; or say in a \
          comment that either is meant.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        for (i, pair) in rule.rule.peers.windows(2).enumerate() {
            let (namespaces, pods) = (lone_namespaces(pair), lone_pods(pair));
            let (Some((_, namespaces)), Some((at, pods))) = (namespaces, pods) else { continue };
            let meaning = meaning(context, &rule, namespaces, pods);
            if meaning == Meaning::Or || says_or(context, &rule, i + 1) {
                continue;
            }
            let path = rule.peer_path(i + at);
            let Peer::Pods { pods: Some(selector), .. } = pods else { continue };
            let message = format!(
                "two peers, either of which is enough: all pods of those namespaces, or the pods \
                 {selector} of namespace {}",
                rule.namespace
            );
            let help = "if a peer must satisfy both, remove the dash before the second selector";
            let finding = report.policy(rule.policy, path, message, help);
            // The other order is how OR is usually written.
            if meaning == Meaning::Unknown && at == 0 {
                finding.note();
            }
        }
    }
}

fn lone_namespaces(pair: &[Peer]) -> Option<(usize, &Peer)> {
    let lone =
        |p: &&Peer| matches!(p, Peer::Pods { pods: None, namespaces: Some(n) } if !n.is_empty());
    pair.iter().enumerate().find(|(_, p)| lone(p))
}

fn lone_pods(pair: &[Peer]) -> Option<(usize, &Peer)> {
    let lone =
        |p: &&Peer| matches!(p, Peer::Pods { pods: Some(s), namespaces: None } if !s.is_empty());
    pair.iter().enumerate().find(|(_, p)| lone(p))
}

/// What the pods of the input show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The pods are in the policy's own namespace.
    Or,
    /// The pods are in the namespaces.
    And,
    Unknown,
}

fn meaning(context: &Context<'_>, rule: &RuleRef<'_>, namespaces: &Peer, pods: &Peer) -> Meaning {
    let (Peer::Pods { namespaces: Some(n), .. }, Peer::Pods { pods: p, .. }) = (namespaces, pods)
    else {
        return Meaning::Unknown;
    };
    let both = Peer::Pods { pods: p.clone(), namespaces: Some(n.clone()) };
    let any_known = |peer: &Peer| {
        context.peers(rule.namespace, peer).into_iter().any(|pod| context.is_known(pod))
    };
    // The policy's own namespace, named: then there is nothing that AND could mean.
    if n.match_labels.get(NAMESPACE_NAME_LABEL).is_some_and(|name| name == rule.namespace) {
        return Meaning::Unknown;
    }
    match (any_known(pods), any_known(&both)) {
        (false, true) => Meaning::And,
        (true, false) if any_known(namespaces) => Meaning::Or,
        _ => Meaning::Unknown,
    }
}

/// Whether a comment of the policy, down to the second peer, speaks of alternatives.
fn says_or(context: &Context<'_>, rule: &RuleRef<'_>, second: usize) -> bool {
    use portcullis_kube::ObjectRef;
    let at = context.input.locate(ObjectRef::Policy(rule.policy), &rule.peer_path(second));
    let Some(at) = at else { return false };
    let alternative = |text: &str| {
        let lower = text.to_lowercase();
        let has = |word| lower.split(|c: char| !c.is_alphanumeric()).any(|w| w == word);
        text.split(|c: char| !c.is_alphanumeric()).any(|w| w == "OR")
            || has("either")
            || lower.contains("or else")
    };
    context
        .comments(rule.policy)
        .into_iter()
        .any(|(line, text)| line <= at.line && alternative(text))
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, namespace, notes, pod, policy};

    const SPLIT: &str = "  podSelector: {}
  ingress:
    - from:
        - namespaceSelector:
            matchLabels: {kubernetes.io/metadata.name: production}
        - podSelector:
            matchLabels: {app: frontend}";

    fn web(spec: &str) -> String {
        policy("web", spec)
    }

    #[test]
    fn two_items_where_one_was_meant() {
        assert_eq!(found(&web(SPLIT)), ["12:11 extra-dash"]);
        let finding = &findings(&web(SPLIT))[0];
        assert_eq!(finding.path, "spec.ingress[0].from[1]");
        assert!(finding.message.contains("app=frontend of namespace shop"), "{}", finding.message);
    }

    #[test]
    fn pods_of_the_other_namespace_show_that_and_was_meant_in_any_order() {
        let turned = "  podSelector: {}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: frontend}}
        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: production}}";
        let there = pod("production", "a", "app: frontend", "") + &pod("shop", "b", "app: web", "");
        assert_eq!(found(&(web(turned) + &there)), ["10:11 extra-dash"]);
        assert!(found(&web(turned)).is_empty());
        assert_eq!(notes(&web(turned)), ["10:11 extra-dash"]);
    }

    #[test]
    fn a_comment_that_says_either_is_taken_at_its_word() {
        for comment in ["# OR: two items", "# either will do", "# all of production, or else ours"]
        {
            assert!(found(&format!("{comment}\n{}", web(SPLIT))).is_empty(), "{comment}");
        }
        let licence = "# unless required by law or agreed to";
        assert_eq!(found(&format!("{licence}\n{}", web(SPLIT))).len(), 1);
    }

    #[test]
    fn pods_of_the_own_namespace_alone_show_that_or_was_meant() {
        let there = pod("production", "a", "app: api", "") + &pod("shop", "b", "app: frontend", "");
        assert!(found(&(web(SPLIT) + &there)).is_empty());
    }

    #[test]
    fn one_item_with_both_and_empty_selectors_are_silent() {
        let both = SPLIT.replace("        - podSelector", "          podSelector");
        assert!(found(&web(&both)).is_empty());
        let own = SPLIT.replace(":\n            matchLabels: {app: frontend}", ": {}");
        assert!(found(&web(&own)).is_empty());
        let everywhere = SPLIT.replace(
            ":\n            matchLabels: {kubernetes.io/metadata.name: production}",
            ": {}",
        );
        assert!(found(&web(&everywhere)).is_empty());
    }

    #[test]
    fn known_mistake_two_list_items_under_a_comment_that_means_and() {
        let yaml = "# Only frontend pods of the production namespace
"
        .to_owned()
            + &web(SPLIT).replace("kubernetes.io/metadata.name", "name")
            + &namespace("production", "name: production");
        assert_eq!(found(&yaml), ["13:11 extra-dash"]);
    }
}
