//! What a project wants of the lint: `.portcullis.yaml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portcullis_kube::{Setting, SettingEntry, SettingValue, Severity, WrongSetting};

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
    /// Reads a configuration file, whose paths are relative to `base`:
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
    pub fn parse(text: &str, base: &Path) -> Result<Config, Vec<WrongSetting>> {
        let mut config = Config { base: absolute(base), ..Config::default() };
        let mut wrong = Vec::new();
        let root = Setting::parse(text)?;
        for entry in map(&root, &mut wrong) {
            match entry.key.as_str() {
                "rules" => {
                    for rule in map(&entry.value, &mut wrong) {
                        let id = rule_id(rule, &mut wrong);
                        let weight = weight(&rule.value).map_err(|w| wrong.push(w));
                        if let (Some(id), Ok(weight)) = (id, weight) {
                            config.severities.insert(id, weight);
                        }
                    }
                }
                "ignore" => {
                    for item in list(&entry.value, &mut wrong) {
                        config.ignore.push(ignore(item, &mut wrong));
                    }
                }
                _ => wrong.push(entry.unknown(&["rules", "ignore"])),
            }
        }
        if wrong.is_empty() { Ok(config) } else { Err(wrong) }
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

fn weight(setting: &Setting) -> Result<Option<Severity>, WrongSetting> {
    let SettingValue::Text(text) = &setting.value else {
        return Err(setting.expected("off, note, warning or error"));
    };
    Ok(match text.as_str() {
        "off" => None,
        "note" => Some(Severity::Note),
        "warning" => Some(Severity::Warning),
        "error" => Some(Severity::Error),
        _ => return Err(setting.expected("off, note, warning or error")),
    })
}

fn rule_id(entry: &SettingEntry, wrong: &mut Vec<WrongSetting>) -> Option<&'static str> {
    let ids: Vec<&'static str> = crate::rules().iter().map(|rule| rule.id).collect();
    let known = ids.iter().find(|id| **id == entry.key).copied();
    if known.is_none() {
        wrong.push(entry.unknown(&ids));
    }
    known
}

fn ignore(setting: &Setting, wrong: &mut Vec<WrongSetting>) -> Ignore {
    let mut ignore = Ignore::default();
    for entry in map(setting, wrong) {
        match entry.key.as_str() {
            "paths" => ignore.paths = texts(&entry.value, wrong),
            "namespaces" => ignore.namespaces = texts(&entry.value, wrong),
            "rules" => {
                for (id, item) in
                    texts(&entry.value, wrong).into_iter().zip(list(&entry.value, &mut Vec::new()))
                {
                    let (line, column) = (item.line, item.column);
                    let entry = SettingEntry { key: id, line, column, value: item.clone() };
                    ignore.rules.extend(rule_id(&entry, wrong));
                }
            }
            _ => wrong.push(entry.unknown(&["rules", "paths", "namespaces"])),
        }
    }
    let everywhere = ignore.paths.is_empty() && ignore.namespaces.is_empty();
    if everywhere && wrong.is_empty() {
        wrong.push(WrongSetting {
            message:
                "expected paths or namespaces: what is to be ignored everywhere is turned off \
                      under `rules`"
                    .to_owned(),
            ..setting.expected("")
        });
    }
    ignore
}

fn map<'s>(setting: &'s Setting, wrong: &mut Vec<WrongSetting>) -> &'s [SettingEntry] {
    match &setting.value {
        SettingValue::Map(entries) => entries,
        SettingValue::Nothing => &[],
        _ => {
            wrong.push(setting.expected("a map"));
            &[]
        }
    }
}

fn list<'s>(setting: &'s Setting, wrong: &mut Vec<WrongSetting>) -> &'s [Setting] {
    match &setting.value {
        SettingValue::List(items) => items,
        SettingValue::Nothing => &[],
        _ => {
            wrong.push(setting.expected("a list"));
            &[]
        }
    }
}

/// The texts of a list. What is none is an error, and then there are fewer.
fn texts(setting: &Setting, wrong: &mut Vec<WrongSetting>) -> Vec<String> {
    let mut texts = Vec::new();
    for item in list(setting, wrong) {
        match &item.value {
            SettingValue::Text(text) => texts.push(text.clone()),
            _ => wrong.push(item.expected("a text")),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Source, load};

    use super::Config;
    use crate::testing::policy;

    fn wrong(text: &str) -> Vec<String> {
        let wrong = Config::parse(text, ".".as_ref()).unwrap_err();
        wrong.iter().map(|w| format!("{}:{}: {}", w.line, w.column, w.message)).collect()
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
        let config = Config::parse(config, ".".as_ref()).unwrap();
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
                "1:1: unknown key \"rule\": did you mean \"rules\"?",
                "3:3: unknown key \"extra-dahs\": did you mean \"extra-dash\"?",
                "4:14: expected off, note, warning or error, found \"fatal\"",
                "6:5: unknown key \"path\": did you mean \"paths\"?",
                "7:13: unknown key \"no-rule\": there are allows-everything, \
                 block-covers-cluster, cni-does-not-enforce, …",
                "8:12: expected a list, found \"x\"",
            ]
        );
        assert_eq!(wrong("rules: {a: [}").len(), 1);
        assert_eq!(wrong("rules: {}\nrules: {}"), ["2:1: rules: is there already, on line 1"]);
        assert_eq!(
            wrong("rules: {}\n---\nrules: {}"),
            ["2:1: a second document: settings are one"]
        );
        assert_eq!(wrong("- rules"), ["1:1: expected a map, found a list"]);
        assert!(
            wrong("ignore: [{rules: [one-sided]}]")[0].contains("expected paths or namespaces")
        );
    }
}
