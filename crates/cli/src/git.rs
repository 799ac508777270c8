//! Manifests of a git revision, through the git that is installed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::str::FromStr;

use portcullis_kube::Source;

use crate::trouble::Trouble;

/// Two revisions, as git writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    old: String,
    /// `None` is the files as they are.
    new: Option<String>,
    /// Three dots: the older is where the two parted.
    parted: bool,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let revision = |text: &str| match text {
            "" => Ok("HEAD".to_owned()),
            text if text.starts_with('-') || text.contains(['\n', '\0']) => {
                Err(format!("{text:?} is no revision"))
            }
            text => Ok(text.to_owned()),
        };
        if text.is_empty() {
            return Err("expected a revision, A..B or A...B".to_owned());
        }
        let (old, new, parted) = match (text.split_once("..."), text.split_once("..")) {
            (Some((old, new)), _) => (old, Some(new), true),
            (None, Some((old, new))) => (old, Some(new), false),
            (None, None) => (text, None, false),
        };
        Ok(Range { old: revision(old)?, new: new.map(revision).transpose()?, parted })
    }
}

impl Range {
    /// The older revision and the newer; `None` is the files as they are.
    pub(crate) fn revisions(&self) -> Result<(String, Option<String>), Trouble> {
        let Range { old, new, parted } = self;
        for revision in [Some(old), new.as_ref()].into_iter().flatten() {
            let object = format!("{revision}^{{tree}}");
            git(&["rev-parse", "--verify", "--quiet", &object], b"").map_err(
                |error| match error {
                    // Quiet is what git is about a revision that it does not know.
                    Trouble::Git(text) if text.is_empty() => {
                        Trouble::Git(format!("{revision:?} is no revision of this repository"))
                    }
                    other => other,
                },
            )?;
        }
        match new {
            Some(new) if *parted => {
                let base = git(&["merge-base", old, new], b"").map_err(|_| {
                    Trouble::Git(format!("{old} and {new} have no revision in common"))
                })?;
                Ok((String::from_utf8_lossy(&base).trim().to_owned(), Some(new.clone())))
            }
            _ => Ok((old.clone(), new.clone())),
        }
    }
}

/// The manifests below these paths in a revision, each called `REVISION:path`. A directory is read
/// as one on disk is.
pub(crate) fn sources(
    revision: &str,
    paths: &[PathBuf],
    recursive: bool,
) -> Result<Vec<Source>, Trouble> {
    let mut names = Vec::new();
    for path in paths {
        let found = files(revision, path, recursive)?;
        if found.is_empty() {
            let path = path.display();
            let hint = if recursive { "" } else { " itself; -R looks below it" };
            return Err(Trouble::Git(format!(
                "{revision}:{path}: not there, or no *.yaml, *.yml or *.json in it{hint}"
            )));
        }
        names.extend(found);
    }
    let asked: String = names.iter().map(|name| format!("{revision}:{name}\n")).collect();
    let mut answer =
        git(&["cat-file", "--batch", "--follow-symlinks"], asked.as_bytes())?.into_iter();
    let mut sources = Vec::new();
    for name in names {
        let name = format!("{revision}:{name}");
        let head: Vec<u8> = answer.by_ref().take_while(|byte| *byte != b'\n').collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        // `<object> blob <size>`, and otherwise what is the matter with it.
        let size = match head.split(' ').collect::<Vec<_>>().as_slice() {
            [_, "blob", size] => size.parse::<usize>().ok(),
            _ => None,
        };
        let Some(size) = size else {
            return Err(Trouble::Git(format!("{name}: cannot be read: git says {head:?}")));
        };
        let content: Vec<u8> = answer.by_ref().take(size).collect();
        answer.next();
        let text =
            String::from_utf8(content).map_err(|_| Trouble::Git(format!("{name}: not UTF-8")))?;
        sources.push(Source::Text { name, text });
    }
    Ok(sources)
}

/// The names of manifests, from the top of the repository: a file of any name, or those of a
/// directory that are called like manifests.
fn files(revision: &str, path: &Path, recursive: bool) -> Result<Vec<String>, Trouble> {
    let list = |path: String| {
        let mut arguments = vec!["ls-tree", "-z", "--full-name"];
        arguments.extend(recursive.then_some("-r"));
        arguments.extend([revision, "--", &path]);
        let listed = git(&arguments, b"")?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let entry = |line: &str| {
            let (about, name) = line.split_once('\t')?;
            Some((about.split(' ').nth(1)? == "blob", name.to_owned()))
        };
        let entries: Vec<(bool, String)> = listed.split('\0').filter_map(entry).collect();
        Ok::<_, Trouble>(entries)
    };
    let text = path.display().to_string();
    let text = text.trim_end_matches('/');
    let itself = list(text.to_owned())?;
    if let [(true, name)] = itself.as_slice()
        && Path::new(name).file_name() == path.file_name()
    {
        return Ok(vec![name.clone()]);
    }
    let manifest = |name: &String| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let entries = list(format!("{text}/"))?.into_iter();
    let blobs = entries.filter(|(blob, _)| *blob).map(|(_, name)| name);
    Ok(blobs.filter(manifest).collect())
}

/// What git prints. An error is what it says is wrong.
fn git(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Trouble> {
    let missing = |source| Trouble::Io { what: "cannot run git".to_owned(), source };
    let mut command = Command::new("git");
    // Names are answered as they are, whatever the user's configuration.
    command.args(["-c", "core.quotePath=false"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    let stdin = child.stdin.take();
    let Output { status, stdout, stderr } = std::thread::scope(|scope| {
        // It answers while it is still being asked.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })
    .map_err(missing)?;
    if status.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&stderr);
    let said = said.trim().trim_start_matches("fatal: ");
    Err(Trouble::Git(match said {
        "" => String::new(),
        said if said.starts_with("not a git repository") => {
            "this directory is in no git repository: run it in one, or compare OLD and NEW"
                .to_owned()
        }
        said => format!("git: {said}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_as_git_writes_it() {
        let read = |text: &str| text.parse::<Range>().map(|r| (r.old, r.new, r.parted));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("main..HEAD"), Ok(("main".to_owned(), some("HEAD"), false)));
        assert_eq!(read("v1.2...topic"), Ok(("v1.2".to_owned(), some("topic"), true)));
        assert_eq!(read("main.."), Ok(("main".to_owned(), some("HEAD"), false)));
        assert_eq!(read("main"), Ok(("main".to_owned(), None, false)));
        assert!(read("--output=x").is_err() && read("").is_err());
    }
}
