//! The compiler on manifests that nobody would write: the twin of the fuzz target `compile`.

use portcullis_tests::generate::{self, Size};
use portcullis_tests::{compile, manifests, property};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn whatever_can_be_read_compiles_and_its_answers_agree() {
    let edits = vec((any::<prop::sample::Index>(), edit()), 0..6);
    property::holds((generate::world(Size::SMALL), edits), |(world, edits)| {
        let mut lines: Vec<String> = manifests::yaml(&world).lines().map(str::to_owned).collect();
        for (at, edit) in edits {
            edit.apply(&mut lines, at);
        }
        compile::check(&lines.join("\n"));
        Ok(())
    });
}

/// What a slip of the hand does to a file.
#[derive(Debug, Clone)]
enum Edit {
    Drop,
    Double,
    Indent,
    Value(&'static str),
}

const VALUES: &[&str] =
    &["", "{}", "[]", "-1", "65536", "\"\"", "web", "10.0.0.0/8", "::/0", "null", "[{}]"];

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        Just(Edit::Drop),
        Just(Edit::Double),
        Just(Edit::Indent),
        prop::sample::select(VALUES).prop_map(Edit::Value),
    ]
}

impl Edit {
    fn apply(&self, lines: &mut Vec<String>, at: prop::sample::Index) {
        if lines.is_empty() {
            return;
        }
        let at = at.index(lines.len());
        match self {
            Edit::Drop => _ = lines.remove(at),
            Edit::Double => lines.insert(at, lines[at].clone()),
            Edit::Indent => lines[at].insert_str(0, "  "),
            Edit::Value(value) => {
                if let Some((key, _)) = lines[at].split_once(": ") {
                    lines[at] = format!("{key}: {value}");
                }
            }
        }
    }
}
