//! `-k`: what an installed kustomize makes of a directory.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use portcullis_kube::Source;

use crate::trouble::Trouble;

/// The programs that can do it, and how. The first that is installed does.
const PROGRAMS: [[&str; 2]; 2] = [["kustomize", "build"], ["kubectl", "kustomize"]];

/// The manifests of a kustomization, by the name of its directory. What the program says goes to
/// stderr as it is.
pub(crate) fn build(folder: &Path) -> Result<Source, Trouble> {
    let name = folder.display().to_string();
    for [program, verb] in PROGRAMS {
        let mut command = Command::new(program);
        command.arg(verb).arg("--").arg(folder).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = match command.output() {
            // A directory of PATH that may not be read looks like a program that may not be run.
            Err(error) if is_absent(error.kind()) => continue,
            Err(source) => {
                return Err(Trouble::Io { what: format!("cannot run {program}"), source });
            }
            Ok(output) => output,
        };
        let says = |what: String| Trouble::Kustomize(format!("`{program} {verb} {name}` {what}"));
        if !output.status.success() {
            return Err(says(format!("failed with {}", output.status)));
        }
        let text = String::from_utf8(output.stdout);
        let text = text.map_err(|error| says(format!("printed no text: {error}")))?;
        return Ok(Source::Text { name, text });
    }
    Err(Trouble::NoKustomize(name))
}

fn is_absent(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}
