//! What a project wants of the lint: `.portcullis.yaml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portcullis_kube::{
    Content, Diagnostic, Field, Options, Reason, Severity, Source, Value, closest, read_values,
};

use crate::finding::Finding;
use crate::glob::matches;

/// How much rules weigh, and where they say nothing. The default leaves everything as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// By rule: its weight, or `None` for a rule that is off.
    severities: BTreeMap<&'static str, Option<Severity>>,
    ignore: Vec<Ignore>,
    /// The directory that paths are relative to.
    base: PathBuf,
}

/// Findings to leave out: those that all of these are true of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ignore {
    /// Empty means every rule.
    rules: Vec<&'static str>,
    /// Patterns; empty means every file.
    paths: Vec<String>,
    /// Patterns; empty means every namespace.
    namespaces: Vec<String>,
}

impl Config {
    /// Reads the text of a configuration file, whose paths are relative to `base`:
    ///
    /// ```yaml
    /// rules:
    ///   one-sided: off # or note, warning, error
    /// ignore:
    ///   - rules: [allows-everything] # left out: every rule
    ///     paths: ["charts/vendored", "**/*.generated.yaml"]
    ///     namespaces: [kube-system, "ci-*"]
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with it, with its place.
    pub fn parse(file: &str, text: &str, base: &Path) -> Result<Config, Vec<Diagnostic>> {
        let source = Source::Text { name: file.to_owned(), text: text.to_owned() };
        let (values, mut wrong) = read_values(&[source], &Options::default());
        wrong.retain(|diagnostic| diagnostic.reason != Reason::Empty);
        if let [_, second, ..] = &values[..] {
            let message = "a second document: a configuration is one";
            wrong.push(second.place.error(Reason::WrongType, message));
        }
        let mut reader = Reader { wrong };
        let mut config = Config { base: absolute(base), ..Config::default() };
        for field in values.first().map_or(&[][..], |root| reader.map(root)) {
            match field.name.as_str() {
                "rules" => {
                    for rule in reader.map(&field.value) {
                        let id = rule_id(&rule.name);
                        if id.is_none() {
                            reader.wrong.push(rule.unknown(&rule_ids(), &rule_examples()));
                        }
                        let weight = reader.weight(&rule.value);
                        config.severities.extend(id.zip(weight));
                    }
                }
                "ignore" => {
                    for item in reader.list(&field.value) {
                        config.ignore.push(reader.ignore(item));
                    }
                }
                _ => reader.unknown(field, &["rules", "ignore"]),
            }
        }
        if reader.wrong.is_empty() { Ok(config) } else { Err(reader.wrong) }
    }

    /// Leaves out and weighs findings as the project wants them.
    pub(crate) fn apply(&self, findings: &mut Vec<Finding>) {
        findings.retain_mut(|finding| {
            if self.ignore.iter().any(|ignore| self.covers(ignore, finding)) {
                return false;
            }
            let usual = crate::rules().iter().find(|rule| rule.id == finding.rule);
            match (self.severities.get(finding.rule), usual) {
                (Some(None), _) => return false,
                // What a rule finds worth less than usual, it still does.
                (Some(Some(severity)), Some(rule)) if finding.severity <= rule.severity => {
                    finding.severity = *severity;
                }
                _ => {}
            }
            true
        });
    }

    fn covers(&self, ignore: &Ignore, finding: &Finding) -> bool {
        let path = || {
            let file = absolute(Path::new(&*finding.location.as_ref()?.file));
            Some(file.strip_prefix(&self.base).ok()?.to_string_lossy().into_owned())
        };
        let of_path = |path: String| ignore.paths.iter().any(|pattern| matches(pattern, &path));
        let of_namespace =
            |namespace: &str| ignore.namespaces.iter().any(|n| matches(n, namespace));
        (ignore.rules.is_empty() || ignore.rules.contains(&finding.rule))
            && (ignore.paths.is_empty() || path().is_some_and(of_path))
            && (ignore.namespaces.is_empty() || finding.namespace().is_some_and(of_namespace))
    }
}

/// The path as the file system knows it, or as near to that as can be told.
fn absolute(path: &Path) -> PathBuf {
    let found = path.canonicalize();
    found.or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn rule_ids() -> Vec<&'static str> {
    crate::rules().iter().map(|rule| rule.id).collect()
}

fn rule_id(name: &str) -> Option<&'static str> {
    rule_ids().into_iter().find(|id| *id == name)
}

/// What is said of a rule that there is not, and that is like none.
fn rule_examples() -> String {
    format!(": there are the rules {}, …", rule_ids()[..3].join(", "))
}

/// Reads values, and keeps what is wrong with them. Nothing at all is an empty map or list.
struct Reader {
    wrong: Vec<Diagnostic>,
}

impl Reader {
    fn weight(&mut self, value: &Value) -> Option<Option<Severity>> {
        let text = match &value.content {
            // YAML takes `off` for a boolean.
            Content::Bool(false) => "off",
            Content::Text(text) => text,
            _ => "",
        };
        let weight = match text {
            "off" => None,
            "note" => Some(Severity::Note),
            "warning" => Some(Severity::Warning),
            "error" => Some(Severity::Error),
            _ => {
                self.wrong.push(value.expected("off, note, warning or error"));
                return None;
            }
        };
        Some(weight)
    }

    fn ignore(&mut self, value: &Value) -> Ignore {
        let mut ignore = Ignore::default();
        for field in self.map(value) {
            match field.name.as_str() {
                "paths" => ignore.paths = self.texts(&field.value),
                "namespaces" => ignore.namespaces = self.texts(&field.value),
                "rules" => {
                    for item in self.list(&field.value) {
                        let id = self.text(item);
                        ignore.rules.extend(id.and_then(|id| self.rule(item, &id)));
                    }
                }
                _ => self.unknown(field, &["rules", "paths", "namespaces"]),
            }
        }
        let everywhere = ignore.paths.is_empty() && ignore.namespaces.is_empty();
        if everywhere && self.wrong.is_empty() {
            let message = "expected paths or namespaces: what is to be ignored everywhere is \
                           turned off under `rules`";
            self.wrong.push(value.place.error(Reason::WrongType, message));
        }
        ignore
    }

    fn rule(&mut self, at: &Value, name: &str) -> Option<&'static str> {
        let id = rule_id(name);
        if id.is_none() {
            let hint = match closest(name, &rule_ids()) {
                Some(meant) => format!(", did you mean {meant:?}?"),
                None => rule_examples(),
            };
            let message = format!("no rule {name:?}{hint}");
            self.wrong.push(at.place.error(Reason::WrongType, &message));
        }
        id
    }

    fn map<'v>(&mut self, value: &'v Value) -> &'v [Field] {
        match &value.content {
            Content::Map(fields) => fields,
            Content::Null => &[],
            _ => {
                self.wrong.push(value.expected("a map"));
                &[]
            }
        }
    }

    fn list<'v>(&mut self, value: &'v Value) -> &'v [Value] {
        match &value.content {
            Content::List(items) => items,
            Content::Null => &[],
            _ => {
                self.wrong.push(value.expected("a list"));
                &[]
            }
        }
    }

    fn texts(&mut self, value: &Value) -> Vec<String> {
        self.list(value).iter().filter_map(|item| self.text(item)).collect()
    }

    fn text(&mut self, value: &Value) -> Option<String> {
        match &value.content {
            Content::Text(text) => Some(text.clone()),
            _ => {
                self.wrong.push(value.expected("a string"));
                None
            }
        }
    }

    fn unknown(&mut self, field: &Field, known: &[&str]) {
        self.wrong.push(field.unknown(known, &format!(": there are {}", known.join(", "))));
    }
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Source, load};

    use super::Config;
    use crate::testing::policy;

    fn wrong(text: &str) -> Vec<String> {
        let wrong = Config::parse("c", text, ".".as_ref()).unwrap_err();
        wrong.iter().map(ToString::to_string).collect()
    }

    /// What is found in a policy of namespace shop with an empty `from` that covers a rule which is
    /// there twice.
    fn found(config: &str) -> Vec<String> {
        let rule = "    - from: [{podSelector: {matchLabels: {app: web}}}]";
        let spec = format!(
            "  podSelector: {{}}\n  policyTypes: [Ingress]\n  ingress:\n    - from: []\n{rule}\n{rule}"
        );
        let name = "charts/web/policy.yaml".to_owned();
        let source = Source::Text { name, text: policy("web", &spec) };
        let input = load(&[source], &Options::default());
        let config = Config::parse("c", config, ".".as_ref()).unwrap();
        let found = crate::lint_with(&input, &config);
        found.iter().map(|f| format!("{} {}", f.severity, f.rule)).collect()
    }

    #[test]
    fn a_rule_weighs_what_the_project_says() {
        let as_it_is =
            ["warning allows-everything", "note redundant-rule", "warning redundant-rule"];
        assert_eq!(found(""), as_it_is);
        assert_eq!(found("rules: {}"), as_it_is);
        let weighed = "rules:\n  allows-everything: error\n  redundant-rule: off\n";
        assert_eq!(found(weighed), ["error allows-everything"]);
        let note = "rules: {allows-everything: note}";
        assert_eq!(found(note)[0], "note allows-everything");
    }

    #[test]
    fn what_a_rule_finds_worth_less_than_usual_stays_so() {
        let found = found("rules: {redundant-rule: error}");
        assert_eq!(found[1..], ["note redundant-rule", "error redundant-rule"]);
    }

    #[test]
    fn findings_are_ignored_by_path_and_namespace_where_both_are_so() {
        let ignoring = |what: &str| found(&format!("ignore: [{{{what}}}]")).len();
        assert_eq!(ignoring("paths: [charts]"), 0);
        assert_eq!(ignoring("paths: ['**/policy.yaml']"), 0);
        assert_eq!(ignoring("paths: ['*.yaml']"), 3);
        assert_eq!(ignoring("namespaces: ['sh*']"), 0);
        assert_eq!(ignoring("namespaces: [kube-system]"), 3);
        assert_eq!(ignoring("paths: [charts], namespaces: [kube-system]"), 3);
        assert_eq!(ignoring("paths: [charts], rules: [allows-everything]"), 2);
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_its_place_and_what_may_be_meant() {
        let text = "rule: {}
rules:
  extra-dahs: off
  one-sided: fatal
ignore:
  - path: [a]
  - rules: [no-rule]
    paths: x
";
        assert_eq!(
            wrong(text),
            [
                "c:1:1: error: rule: unknown field, did you mean \"rules\"?",
                "c:3:3: error: rules.extra-dahs: unknown field, did you mean \"extra-dash\"?",
                "c:4:14: error: rules.one-sided: expected off, note, warning or error, \
                 found the string \"fatal\"",
                "c:6:5: error: ignore[0].path: unknown field, did you mean \"paths\"?",
                "c:7:13: error: ignore[1].rules[0]: no rule \"no-rule\": there are the rules \
                 allows-everything, annotation-without-effect, block-covers-cluster, …",
                "c:8:12: error: ignore[1].paths: expected a list, found the string \"x\"",
            ]
        );
        assert_eq!(wrong("rules: {a: [}").len(), 1);
        assert_eq!(
            wrong("rules: {}\nrules: {}"),
            [
                "c:2:1: error: duplicate field \"rules\": key \"rules\" already set in map, on line 1"
            ]
        );
        assert_eq!(
            wrong("rules: {}\n---\nrules: {}"),
            ["c:3:1: error: a second document: a configuration is one"]
        );
        assert_eq!(wrong("- rules"), ["c:1:1: error: expected a map, found a list"]);
        assert_eq!(
            wrong("ignore: [{paths: [010]}]"),
            ["c:1:19: error: ignore[0].paths[0]: expected a string, found the number 010"]
        );
        assert!(
            wrong("ignore: [{rules: [one-sided]}]")[0].contains("expected paths or namespaces")
        );
    }
}
