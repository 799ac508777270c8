//! Edits of manifests that make findings go away and change no meaning.
//!
//! Rules say which text to replace. Whether that is safe is not left to them: edited texts are read
//! again, and an edit stays only if every policy means what it did, or every pod and address may
//! open exactly what it could.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis_core::Program;
use portcullis_core::diff::{Diff, Side};
use portcullis_core::model::Cluster;
use portcullis_core::validate;
use portcullis_kube::{Diagnostic, Input, Options, Part, Severity, Source, Span, Step, load};

use crate::context::Context;
use crate::finding::Finding;

/// A text to put in the place of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edit {
    /// What is replaced.
    pub span: Span,
    /// What stands there afterwards.
    pub text: String,
}

/// A file before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// The file, as locations call it.
    pub file: Arc<str>,
    /// Its text as it was read.
    pub old: String,
    /// Its text with the edits.
    pub new: String,
    /// How many findings that answers.
    pub fixed: usize,
}

/// The edits of these findings that are safe together, for an input that was read with these
/// options. Files with errors, and edits that would change what any policy does, are left out.
pub fn safe_edits<'f>(input: &Input, options: &Options, findings: &'f [Finding]) -> Vec<&'f Edit> {
    let broken = |file: &str| {
        let errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        errors.filter_map(|d| d.location.as_ref()).any(|at| *at.file == *file)
    };
    let edits = findings.iter().filter_map(|finding| finding.fix.as_ref());
    let wanted: Vec<&Edit> = edits.filter(|edit| !broken(&edit.span.file)).collect();
    let mut kept: Vec<&Edit> = wanted.clone();
    if !keeps_meaning(input, options, &kept) {
        kept.clear();
        for edit in wanted {
            kept.push(edit);
            if !keeps_meaning(input, options, &kept) {
                kept.pop();
            }
        }
    }
    kept
}

/// The files that the [safe edits](safe_edits) of these findings change.
pub fn fix(input: &Input, options: &Options, findings: &[Finding]) -> Vec<Patch> {
    let kept = safe_edits(input, options, findings);
    let mut patches = Vec::new();
    for (file, old) in input.texts() {
        let fixed = kept.iter().filter(|edit| edit.span.file == *file).count();
        let new = edited(file, old, &kept);
        if new != old {
            patches.push(Patch { file: file.clone(), old: old.to_owned(), new, fixed });
        }
    }
    patches
}

/// The text of a file with all edits that are about it. One that overlaps another is left out.
fn edited(file: &Arc<str>, text: &str, edits: &[&Edit]) -> String {
    let of_file = edits.iter().filter(|edit| edit.span.file == *file);
    let by_place: BTreeMap<(usize, usize), &str> =
        of_file.map(|edit| (edit.span.bytes, edit.text.as_str())).collect();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for ((start, end), new) in by_place {
        if start >= at {
            out.push_str(&text[at..start]);
            out.push_str(new);
            at = end;
        }
    }
    out.push_str(&text[at..]);
    out
}

fn keeps_meaning(input: &Input, options: &Options, edits: &[&Edit]) -> bool {
    if edits.is_empty() {
        return true;
    }
    let texts = input.texts().map(|(name, text)| Source::Text {
        name: name.to_string(),
        text: edited(name, text, edits),
    });
    let after = load(&texts.collect::<Vec<_>>(), options);
    let errors = |input: &Input| {
        let errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        errors.map(|d| d.to_string()).collect::<Vec<_>>()
    };
    errors(input) == errors(&after)
        && input.policies.len() == after.policies.len()
        && (input.cluster == after.cluster || reach_is_equal(input, &after))
}

/// Whether every pod, known or imagined, and every address may open the same, and nothing but
/// policies has changed.
fn reach_is_equal(old: &Input, new: &Input) -> bool {
    let beside = |input: &Input| {
        let policies = Vec::new();
        Cluster { policies, ..input.cluster.clone() }
    };
    if beside(old) != beside(new) {
        return false;
    }
    // The namespaces of imagined pods are as imagined: without labels that nobody has spoken of.
    let pods = Context::new(old).cluster.pods;
    let mut namespaces = old.cluster.namespaces.clone();
    for pod in &pods[old.cluster.pods.len()..] {
        namespaces.entry(pod.namespace.clone()).or_default();
    }
    let clusters = [old, new].map(|input| Cluster {
        pods: pods.clone(),
        namespaces: namespaces.clone(),
        ..input.cluster.clone()
    });
    opens_the_same(clusters.each_ref())
}

/// Whether every pod and every address may open the same in two clusters.
pub(crate) fn opens_the_same(clusters: [&Cluster; 2]) -> bool {
    let programs = clusters.map(Program::compile);
    let mut diff = Diff::of(clusters, programs.each_ref());
    (0..diff.joints.len()).all(|source| {
        let row = diff.row(source);
        row.into_iter().all(|[old, new]| diff.sets(Side::Old, old) == diff.sets(Side::New, new))
    })
}

/// What the reader says, with the fixes that it has: a CIDR with host bits is written as the
/// network that it is taken for.
pub fn reader_findings(input: &Input) -> Vec<Finding> {
    let mut findings: Vec<Finding> = input.diagnostics.iter().map(Finding::from).collect();
    for (finding, diagnostic) in findings.iter_mut().zip(&input.diagnostics) {
        finding.fix = standard_cidr(input, diagnostic);
    }
    findings
}

fn standard_cidr(input: &Input, diagnostic: &Diagnostic) -> Option<Edit> {
    let of_block = diagnostic.path.contains(".ipBlock.");
    if diagnostic.severity != Severity::Warning || !of_block {
        return None;
    }
    let named = |p: &&portcullis_kube::ReadPolicy| {
        diagnostic.object.as_deref()
            == Some(&format!("networkpolicy {}/{}", p.raw.namespace, p.raw.name))
    };
    let policy = input.policies.iter().find(named)?.index()?;
    let steps = steps(&diagnostic.path)?;
    let span = input.policy_span(policy, &steps, Part::Value)?;
    let (_, text) = input.texts().find(|(name, _)| **name == span.file)?;
    let (_, standard) = validate::cidr(text.get(span.bytes.0..span.bytes.1)?)?;
    Some(Edit { span, text: standard? })
}

/// The steps of a path of fields and indices.
pub(crate) fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        steps.push(Step::Key(name));
        for index in indices.split_terminator(']') {
            steps.push(Step::Item(index.strip_prefix('[')?.parse().ok()?));
        }
    }
    Some(steps)
}

impl Patch {
    /// The change as `diff -u` writes it.
    pub fn unified(&self) -> String {
        const CONTEXT: usize = 3;
        let lines = |text| str::split_inclusive(text, '\n').collect::<Vec<&str>>();
        let (old, new) = (lines(&self.old), lines(&self.new));
        let mut out = format!("--- {}\n+++ {}\n", self.file, self.file);
        let changes = changes(&old, &new);
        // What is near each other is shown together.
        let near = |a: &Change, b: &Change| b.old.0 - a.old.1 <= 2 * CONTEXT;
        for hunk in changes.chunk_by(near) {
            let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
            let before = first.old.0.min(CONTEXT);
            let after = (old.len() - last.old.1).min(CONTEXT);
            let range = |from: usize, to: usize| {
                let start = if from == to { from } else { from + 1 };
                format!("{start},{}", to - from)
            };
            out += &format!(
                "@@ -{} +{} @@\n",
                range(first.old.0 - before, last.old.1 + after),
                range(first.new.0 - before, last.new.1 + after)
            );
            let mut at = first.old.0 - before;
            for change in hunk {
                old[at..change.old.0].iter().for_each(|l| line(&mut out, ' ', l));
                old[change.old.0..change.old.1].iter().for_each(|l| line(&mut out, '-', l));
                new[change.new.0..change.new.1].iter().for_each(|l| line(&mut out, '+', l));
                at = change.old.1;
            }
            old[at..at + after].iter().for_each(|l| line(&mut out, ' ', l));
        }
        out
    }
}

fn line(out: &mut String, mark: char, line: &str) {
    out.push(mark);
    out.push_str(line);
    if !line.ends_with('\n') {
        out.push_str("\n\\ No newline at end of file\n");
    }
}

/// Lines of the old text and those that take their place, both from a line and up to another.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    old: (usize, usize),
    new: (usize, usize),
}

/// Fixes are few and small: lines are the same up to the next difference, and again from the
/// nearest two lines that are equal.
fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    let mut changes = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let (old_left, new_left) = (old.len() - i, new.len() - j);
        let mut skips = (0..=old_left + new_left).flat_map(|n| {
            (0..=n.min(old_left)).filter(move |a| n - a <= new_left).map(move |a| (a, n - a))
        });
        let meets = |(a, b): &(usize, usize)| {
            let (a, b) = (i + a, j + b);
            a == old.len() && b == new.len() || a < old.len() && b < new.len() && old[a] == new[b]
        };
        let (a, b) = skips.find(meets).unwrap_or((old_left, new_left));
        changes.push(Change { old: (i, i + a), new: (j, j + b) });
        (i, j) = (i + a, j + b);
    }
    changes
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Input, Options, Source, load};
    use proptest::prelude::*;

    use super::{Patch, reach_is_equal};

    fn read(texts: &[(&str, &str)]) -> Input {
        let source = |(name, text): &(&str, &str)| Source::Text {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        };
        load(&texts.iter().map(source).collect::<Vec<_>>(), &Options::default())
    }

    fn patches(input: &Input) -> Vec<Patch> {
        let mut findings = super::reader_findings(input);
        findings.extend(crate::lint(input));
        super::fix(input, &Options::default(), &findings)
    }

    const BLOCK: &str = "# Offices.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: offices, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
    - from:
        - ipBlock:
            cidr: \"10.1.2.3/8\" # the large one
            except:
              - 10.1.0.9/16
    - from:
        - ipBlock: {cidr: 192.168.7.1/24}
";

    #[test]
    fn host_bits_are_written_as_the_network_with_comments_and_quotes_as_they_were() {
        let input = read(&[("offices.yaml", BLOCK)]);
        let patches = patches(&input);
        assert_eq!(patches[0].fixed, 3);
        let expected = "\
--- offices.yaml
+++ offices.yaml
@@ -8,8 +8,8 @@
   ingress:
     - from:
         - ipBlock:
-            cidr: \"10.1.2.3/8\" # the large one
+            cidr: \"10.0.0.0/8\" # the large one
             except:
-              - 10.1.0.9/16
+              - 10.1.0.0/16
     - from:
-        - ipBlock: {cidr: 192.168.7.1/24}
+        - ipBlock: {cidr: 192.168.7.0/24}
";
        assert_eq!(patches[0].unified(), expected);
        let fixed = read(&[("offices.yaml", &patches[0].new)]);
        assert_eq!(fixed.cluster, input.cluster);
        assert!(fixed.diagnostics.is_empty() && self::patches(&fixed).is_empty());
    }

    #[test]
    fn a_file_with_an_error_is_left_alone_and_others_are_not() {
        let broken = format!("{BLOCK}  egres: []\n").replace("name: offices", "name: broken");
        let input = read(&[("offices.yaml", BLOCK), ("broken.yaml", &broken)]);
        let files: Vec<_> = patches(&input).into_iter().map(|p| p.file).collect();
        assert_eq!(files, ["offices.yaml".into()]);
    }

    #[test]
    fn an_alias_is_no_place_to_write() {
        let aliased =
            BLOCK.replace("\"10.1.2.3/8\"", "&big 10.1.2.3/8").replace("192.168.7.1/24}", "*big }");
        let input = read(&[("offices.yaml", &aliased)]);
        let patches = patches(&input);
        let fixed = read(&[("offices.yaml", &patches[0].new)]);
        assert_eq!(fixed.cluster, input.cluster);
        assert!(patches[0].new.contains("&big 10.1.2.3/8") && patches[0].new.contains("*big"));
        assert_eq!(patches[0].fixed, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn fixes_change_neither_meaning_nor_comments_and_leave_nothing_to_fix(
            policies in prop::collection::vec((0..3usize, 0..4usize, any::<bool>(), any::<bool>()), 1..4),
            labelled in any::<[bool; 2]>(),
        ) {
            let types = ["", "  policyTypes: [Ingress]\n", "  policyTypes: [Ingress, Egress]\n"];
            let peers = [
                "namespaceSelector: {matchLabels: {name: edge}} # by name",
                "namespaceSelector:\n            matchLabels:\n              \"name\": shop # quoted",
                "ipBlock: {cidr: 10.9.8.7/8} # net",
                "podSelector: {matchLabels: {app: web}}",
            ];
            let mut text = String::new();
            for (i, (kind, peer, egress, comment)) in policies.into_iter().enumerate() {
                let comment = if comment { "  # Those who may.\n" } else { "" };
                let egress = if egress { "  egress: [{to: [{podSelector: {}}]}]\n" } else { "" };
                text += &format!(
                    "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{i}, namespace: shop}}\nspec:\n  podSelector: {{}}\n{}{comment}  ingress:\n    - from:\n        - {}\n{egress}",
                    types[kind], peers[peer]
                );
            }
            for (name, labelled) in ["shop", "edge"].into_iter().zip(labelled) {
                let labels = if labelled { format!("{{name: {name}}}") } else { "{}".to_owned() };
                text += &crate::testing::namespace(name, labels.trim_matches(['{', '}']));
                text += &crate::testing::pod(name, "web", "app: web", "");
            }
            let before = read(&[("all.yaml", &text)]);
            let patched = patches(&before);
            let new = patched.first().map_or(&text, |patch| &patch.new);
            let after = read(&[("all.yaml", new)]);
            prop_assert!(!after.has_errors());
            prop_assert!(reach_is_equal(&before, &after));
            let comments = |text: &str| -> Vec<String> {
                text.lines().filter_map(|l| l.split_once('#')).map(|(_, c)| c.to_owned()).collect()
            };
            prop_assert_eq!(comments(&text), comments(new));
            prop_assert!(patches(&after).is_empty());
        }
    }

    #[test]
    fn what_would_change_the_meaning_is_not_done() {
        let input = read(&[("offices.yaml", BLOCK)]);
        let mut findings = super::reader_findings(&input);
        let wrong = findings[0].fix.as_mut().unwrap();
        wrong.text = "10.0.0.0/9".to_owned();
        let patches = super::fix(&input, &Options::default(), &findings);
        assert_eq!(patches[0].fixed, 2);
        assert!(patches[0].new.contains("10.1.2.3/8"));
    }
}
