//! An annotation of Portcullis that does nothing.

use portcullis_core::model::{LOG_ANNOTATION, MODE_ANNOTATION};
use portcullis_kube::{Annotation, PREFIX, Severity, closest};

use crate::context::Context;
use crate::ignore;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "annotation-without-effect",
    severity: Severity::Warning,
    what: "An annotation of Portcullis has a name or a value that means nothing, or is on an object that \
           it means nothing for.",
    why: "Kubernetes takes any annotation. A policy whose mode is not understood is enforced; what is \
          logged of a namespace, and what is ignored, stays as it is without the annotation.",
    example: "
metadata:
  annotations:
    portcullis.dev/mode: aduit
",
    fix: "`portcullis.dev/mode` is `enforce` or `audit`, on a NetworkPolicy or Namespace; \
          `portcullis.dev/log` is `none`, `denied` or `all`, on a Namespace; `portcullis.dev/ignore` lists \
          rules, on a NetworkPolicy.",
    whole: false,
    check,
};

/// What an annotation may say, and where.
struct Known {
    name: &'static str,
    /// Kinds, in lower case.
    on: &'static [&'static str],
    /// Its values; `None` where it lists rules.
    values: Option<&'static [&'static str]>,
}

const KNOWN: [Known; 3] = [
    Known {
        name: MODE_ANNOTATION,
        on: &["networkpolicy", "namespace"],
        values: Some(&["enforce", "audit"]),
    },
    Known { name: LOG_ANNOTATION, on: &["namespace"], values: Some(&["none", "denied", "all"]) },
    Known { name: ignore::ANNOTATION, on: &["networkpolicy"], values: None },
];

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for annotation in &context.input.annotations {
        let Annotation { object, policy, location, name, .. } = annotation;
        for (message, help) in wrong(annotation) {
            let finding = report.object(object, Some(location.clone()), message, help);
            finding.path = format!("metadata.annotations[{PREFIX}{name}]");
            finding.policy = *policy;
        }
    }
}

/// What is wrong with an annotation, and what to do.
fn wrong(annotation: &Annotation) -> Vec<(String, String)> {
    let name = format!("{PREFIX}{}", annotation.name);
    let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
        let short = KNOWN.map(|known| known.name.trim_start_matches(PREFIX));
        let help = match closest(&annotation.name, &short) {
            Some(meant) => format!("write `{PREFIX}{meant}`"),
            None => format!("there are {}", listed(&KNOWN.map(|known| known.name), "and")),
        };
        return vec![(format!("there is no annotation `{name}`"), help)];
    };
    let kind = annotation.object.split(' ').next().unwrap_or_default();
    if !known.on.contains(&kind) {
        let message = format!("`{name}` has no effect on a {kind}");
        return vec![(message, format!("it can be on a {}", listed(known.on, "or")))];
    }
    let rules: Vec<&str> = crate::rules().iter().map(|rule| rule.id).collect();
    let (values, said): (&[&str], Vec<&str>) = match known.values {
        Some(values) => (values, vec![&annotation.value]),
        None => (&rules, ignore::listed(&annotation.value).collect()),
    };
    let unknown = said.into_iter().filter(|value| !values.contains(value));
    let wrong = unknown.map(|value| {
        let help = match (closest(value, values), known.values) {
            (Some(meant), _) => format!("write `{meant}`"),
            (None, Some(values)) => format!("write {}", listed(values, "or")),
            (None, None) => "`portcullis check --explain RULE` tells of a rule".to_owned(),
        };
        (format!("`{name}` does not know {value:?}"), help)
    });
    wrong.collect()
}

/// `a`, `b` or `c`.
fn listed(words: &[&str], last: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((end, [])) => end.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found};

    /// A policy, and its namespace, with these annotations.
    fn with(policy: &str, namespace: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
  annotations:
    other.dev/mode: anything
    {policy}
spec:
  podSelector: {{}}
  ingress: []
---
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations:
    {namespace}
"
        )
    }

    /// What is said of the one finding: message and help.
    fn said(policy: &str, namespace: &str) -> (String, String) {
        let [finding] = &findings(&with(policy, namespace))[..] else {
            panic!("not one finding: {:#?}", findings(&with(policy, namespace)));
        };
        (finding.message.clone(), finding.help.clone())
    }

    fn pair(message: &str, help: &str) -> (String, String) {
        (message.to_owned(), help.to_owned())
    }

    #[test]
    fn a_value_that_means_nothing_is_found() {
        assert_eq!(
            found(&with("portcullis.dev/mode: aduit", "a: b")),
            ["8:5 annotation-without-effect"]
        );
        assert_eq!(
            said("portcullis.dev/mode: aduit", "a: b"),
            pair("`portcullis.dev/mode` does not know \"aduit\"", "write `audit`")
        );
        assert_eq!(
            said("a: b", "portcullis.dev/mode: warn"),
            pair("`portcullis.dev/mode` does not know \"warn\"", "write `enforce` or `audit`")
        );
        assert_eq!(
            said("a: b", "portcullis.dev/log: denid"),
            pair("`portcullis.dev/log` does not know \"denid\"", "write `denied`")
        );
        assert_eq!(
            said("portcullis.dev/ignore: \"extra-dash, extra-dahs\"", "a: b"),
            pair("`portcullis.dev/ignore` does not know \"extra-dahs\"", "write `extra-dash`")
        );
    }

    #[test]
    fn a_name_that_means_nothing_is_found() {
        assert_eq!(
            said("portcullis.dev/modes: audit", "a: b"),
            pair("there is no annotation `portcullis.dev/modes`", "write `portcullis.dev/mode`")
        );
        let all =
            "there are `portcullis.dev/mode`, `portcullis.dev/log` and `portcullis.dev/ignore`";
        assert_eq!(
            said("a: b", "portcullis.dev/level: all"),
            pair("there is no annotation `portcullis.dev/level`", all)
        );
    }

    #[test]
    fn an_annotation_on_an_object_that_it_means_nothing_for_is_found() {
        assert_eq!(
            said("portcullis.dev/log: all", "a: b"),
            pair(
                "`portcullis.dev/log` has no effect on a networkpolicy",
                "it can be on a `namespace`"
            )
        );
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  \
                   annotations: {portcullis.dev/mode: audit}\n\
                   spec: {containers: [{name: main, image: app}]}\n";
        assert_eq!(found(&(with("a: b", "a: b") + pod)), ["25:17 annotation-without-effect"]);
    }

    #[test]
    fn what_has_an_effect_is_silent() {
        for policy in
            ["mode: audit", "mode: enforce", "ignore: extra-dash,one-sided", "ignore: \"\""]
        {
            for namespace in ["mode: audit", "log: none", "log: denied", "log: all"] {
                let yaml = with(
                    &format!("portcullis.dev/{policy}"),
                    &format!("portcullis.dev/{namespace}"),
                );
                assert!(found(&yaml).is_empty(), "{policy}, {namespace}");
            }
        }
    }

    #[test]
    fn it_is_ignored_like_other_findings() {
        let comment = "portcullis.dev/mode: warn # portcullis:ignore annotation-without-effect";
        assert!(found(&with(comment, comment)).is_empty());
        let annotation = "portcullis.dev/mode: warn\n    \
                          portcullis.dev/ignore: annotation-without-effect";
        assert!(found(&with(annotation, "a: b")).is_empty());
    }
}
