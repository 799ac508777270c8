//! What the documentation shows is what the commands print: each `console` block is run.

use std::path::Path;

#[test]
fn every_transcript_in_the_documentation_is_what_the_commands_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::set_current_dir(root).unwrap();
    trycmd::TestCases::new()
        .env("COLUMNS", "80")
        // Whoever runs this may have a cluster: the transcripts are of somebody who has none.
        .env("HOME", "/home/you")
        .env("KUBECONFIG", "")
        .env("KUBERNETES_SERVICE_HOST", "")
        // A guard against hanging for ever: none takes so long.
        .timeout(std::time::Duration::from_secs(120))
        .case("README.md")
        .case("docs/*.md")
        .case("examples/*/README.md")
        .case("crates/cli/tests/cmd/*.md")
        .run();
}
