//! Patterns for paths and names.

/// Whether a path is what a pattern says, or below it. `*` and `?` stand for characters of one
/// step, `**` for any number of steps.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let steps = |text: &str| {
        text.split('/').filter(|s| !s.is_empty() && *s != ".").map(str::to_owned).collect()
    };
    let (pattern, path): (Vec<String>, Vec<String>) = (steps(pattern), steps(path));
    !pattern.is_empty() && way(&pattern, &path)
}

fn way(pattern: &[String], path: &[String]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        // What is below a directory that matches does, too.
        (None, _) => true,
        (Some((first, rest)), _) if first == "**" => {
            (0..=path.len()).any(|skipped| way(rest, &path[skipped..]))
        }
        (Some((first, rest)), Some((step, path))) => {
            let (first, step): (Vec<char>, Vec<char>) =
                (first.chars().collect(), step.chars().collect());
            one(&first, &step) && way(rest, path)
        }
        (Some(_), None) => false,
    }
}

fn one(pattern: &[char], step: &[char]) -> bool {
    match (pattern.split_first(), step.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => (0..=step.len()).any(|skipped| one(rest, &step[skipped..])),
        (Some((p, rest)), Some((c, step))) => (*p == '?' || p == c) && one(rest, step),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_pattern_stands_for_what_it_names_and_all_below() {
        for (pattern, path) in [
            ("vendor", "vendor/a/b.yaml"),
            ("vendor/", "vendor"),
            ("./vendor/*.yaml", "vendor/b.yaml"),
            ("**/b.yaml", "b.yaml"),
            ("**/b.yaml", "a/c/b.yaml"),
            ("a/**/b", "a/b"),
            ("ci-*", "ci-1"),
            ("b?", "b1"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("", "a"),
            ("vendor", "vendored"),
            ("*.yaml", "a/b.yaml"),
            ("a/*/b", "a/b"),
            ("b?", "b"),
            ("vendor/a", "vendor"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
