//! Directions that are left to a default.

use portcullis_core::model::{Direction, Policy};
use portcullis_kube::{Part, Severity, Step};

use crate::context::Context;
use crate::fix::Edit;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "policy-types-omitted",
    severity: Severity::Note,
    what: "A policy does not say which directions it is about.",
    why: "Without `policyTypes` a policy is about ingress, and about egress as soon as it has an egress \
          rule. So the first egress rule that somebody adds also closes egress for everything else. \
          `--fix` writes out what the policy is about now.",
    example: "
spec:
  podSelector:
    matchLabels: {app: web}
  ingress:
    - from:
        - podSelector: {}
",
    fix: "Write `policyTypes` with the directions that are meant.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, raw) in context.policies() {
        let spec = &raw.spec;
        // Egress alone, or empty, has rules of its own: it hardly is what was meant.
        let doubtful = spec.egress.is_some() && (policy.egress.is_none() || spec.ingress.is_none());
        if spec.policy_types.as_ref().is_some_and(|types| !types.is_empty()) || doubtful {
            continue;
        }
        let types = types(policy);
        let message = format!("is about {types} by default: `policyTypes` is not set");
        let help = format!("write `policyTypes: [{types}]`");
        report.policy(i, "spec", message, help).fix = written_out(context, i, &types);
    }
}

fn types(policy: &Policy) -> String {
    let mut types = Vec::new();
    for (direction, name) in [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")] {
        types.extend(policy.rules(direction).map(|_| name));
    }
    types.join(", ")
}

/// A line above the first section, or above the subject where there is none, and above the
/// comments that stand there. An empty list that is there stays for people to replace.
fn written_out(context: &Context<'_>, policy: usize, types: &str) -> Option<Edit> {
    let key = |name| {
        let path = [Step::Key("spec"), Step::Key(name)];
        context.input.policy_span(policy, &path, Part::Key)
    };
    if key("policyTypes").is_some() {
        return None;
    }
    let sections = [key("ingress"), key("egress")].into_iter().flatten();
    let mut span = sections.min().or_else(|| key("podSelector"))?;
    let (_, text) = context.input.texts().find(|(name, _)| **name == span.file)?;
    let start_of = |at: usize| text[..at].rfind('\n').map_or(0, |end| end + 1);
    let mut start = start_of(span.bytes.0);
    let indent = &text[start..span.bytes.0];
    if !indent.bytes().all(|b| b == b' ') {
        return None;
    }
    while start > 0 && text[start_of(start - 1)..start].trim_start().starts_with('#') {
        start = start_of(start - 1);
    }
    let line_end = if text[..start].ends_with("\r\n") { "\r\n" } else { "\n" };
    span.bytes = (start, start);
    Some(Edit { span, text: format!("{indent}policyTypes: [{types}]{line_end}") })
}

#[cfg(test)]
mod tests {
    use super::RULE;
    use crate::testing::{advice, fixed, found, places, policy};

    const INGRESS: &str = "  podSelector: {} # all
  # The web pods.
  ingress:
    - from: [{podSelector: {}}]";

    #[test]
    fn a_policy_without_policy_types_gets_them_written_out() {
        let yaml = policy("web", INGRESS);
        assert_eq!(places(&advice(&RULE, &yaml)), ["6:1"]);
        let written = fixed(&yaml);
        let above = "  policyTypes: [Ingress]\n  # The web pods.\n";
        assert_eq!(written, yaml.replace("  # The web pods.\n", above));
        assert!(advice(&RULE, &written).is_empty());

        let both = format!(
            "{INGRESS}\n  egress: [{{ports: [{{port: 53}}, {{port: 53, protocol: UDP}}]}}]"
        );
        assert!(fixed(&policy("web", &both)).contains("\n  policyTypes: [Ingress, Egress]\n"));
        let closed = policy("web", "  podSelector: {}");
        let expected = closed.replace("  pod", "  policyTypes: [Ingress]\n  pod");
        assert_eq!(fixed(&closed), expected);
    }

    #[test]
    fn windows_line_ends_and_quoted_keys_stay_and_flow_style_is_left_alone() {
        let windows = policy("web", INGRESS).replace('\n', "\r\n");
        let expected = windows.replace("  # The", "  policyTypes: [Ingress]\r\n  # The");
        assert_eq!(fixed(&windows), expected);
        let flow = policy("web", INGRESS).replace("spec:\n", "spec: {podSelector: {}}\n");
        let flow = &flow[..flow.find("{}}").unwrap() + 3];
        assert_eq!(fixed(flow), flow);
    }

    #[test]
    fn policies_that_say_it_or_are_doubtful_are_silent() {
        let said = format!("{INGRESS}\n  policyTypes: [Ingress]");
        assert!(advice(&RULE, &policy("web", &said)).is_empty());
        let egress = "  podSelector: {}\n  egress:\n    - to: [{podSelector: {}}]\n    - ports: [{port: 53, protocol: UDP}, {port: 53}]";
        let doubtful = policy("web", egress);
        assert_eq!(found(&doubtful), ["8:3 ingress-isolated-too"]);
        assert!(advice(&RULE, &doubtful).is_empty());
        assert_eq!(fixed(&doubtful), doubtful);
    }
}
