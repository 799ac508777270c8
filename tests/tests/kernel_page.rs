//! The table that docs/kernel.md shows is the one that the example gets.

use std::path::Path;

use portcullis_dataplane::{plan, share};
use portcullis_kube::{Options, Source, load};

#[test]
fn the_table_in_the_documentation_is_that_of_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = Source::Path(root.join("examples/three-tier"));
    let input = load(&[source], &Options::default());
    assert!(!input.has_errors());
    let lab = portcullis_lab::plan(&input.cluster, &portcullis_lab::Options::default()).unwrap();
    let (state, _) = share(&lab.cluster, "node-1");
    let table = plan::render(&plan::plan(&state).unwrap());

    let path = root.join("docs/kernel.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("```nft\n").unwrap();
    let (shown, after) = rest.split_once("```").unwrap();
    if shown != table && std::env::var_os("TRYCMD").is_some_and(|v| v == "overwrite") {
        std::fs::write(path, format!("{before}```nft\n{table}```{after}")).unwrap();
        return;
    }
    assert_eq!(shown, table, "`cargo xtask bless` writes the page anew");
}
