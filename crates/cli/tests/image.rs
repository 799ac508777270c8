//! The image, built as deploy/Dockerfile says, without a daemon and without a network. That needs root
//! and buildah; without them this is skipped, unless PORTCULLIS_REQUIRE_BUILDAH is 1.
//!
//! The program of a test is not static. So the empty image that the file begins with has the
//! libraries of this machine here, and nothing else is different.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use portcullis_tests::folder::Folder;
use serde_json::{Value, json};

/// Whether this machine lets us try.
fn possible() -> bool {
    let buildah = Command::new("buildah").arg("--version").output().is_ok();
    let possible = geteuid().is_root() && buildah;
    let required = std::env::var("PORTCULLIS_REQUIRE_BUILDAH").is_ok_and(|value| value == "1");
    assert!(
        possible || !required,
        "root or buildah is missing, and PORTCULLIS_REQUIRE_BUILDAH is 1"
    );
    if !possible {
        eprintln!("not tested: that needs root and buildah");
    }
    possible
}

fn printed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&stderr));
    text
}

/// Images and containers in a folder of their own.
struct Buildah(Folder);

impl Buildah {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.0.join("root")).arg("--runroot").arg(self.0.join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        printed(&mut self.command(arguments)).trim().to_owned()
    }

    /// Where the files of a new container of an image are.
    fn files(&self, image: &str) -> (String, PathBuf) {
        let container = self.run(&["from", "--pull-never", image]);
        let files = self.run(&["mount", &container]);
        (container, files.into())
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        // What is mounted in the folder would stay, and the folder with it.
        let _ = self.command(&["umount", "--all"]).output();
    }
}

/// The libraries that a program asks for, and the program that loads them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = printed(Command::new("ldd").arg(program));
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

/// All files below a folder.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(tree(&entry.path())),
            false => assert!(files.insert(entry.path())),
        }
    }
    files
}

#[test]
fn the_image_runs_the_agent_as_a_user_who_may_change_the_rules() {
    if !possible() {
        return;
    }
    let buildah = Buildah(Folder::new("image"));
    let folder = &buildah.0;
    let context = folder.join("context");
    fs::create_dir(&context).unwrap();
    let program = context.join("portcullis");
    // Without what debuggers want it is a tenth of the size.
    printed(Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_portcullis")));
    fs::write(context.join("portcullis-cni"), "in place of the plugin").unwrap();

    let (container, files) = buildah.files("scratch");
    let libraries = libraries(&program);
    assert!(!libraries.is_empty());
    for library in &libraries {
        let place = files.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
    let known = tree(&files).len();
    buildah.run(&["commit", "--rm", &container, "libraries"]);
    let dockerfile = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/Dockerfile");
    let text = fs::read_to_string(dockerfile).unwrap();
    assert_eq!(text.matches("\nFROM scratch").count(), 2, "{text}");
    let dockerfile = folder.join("Dockerfile");
    fs::write(&dockerfile, text.replace("\nFROM scratch", "\nFROM localhost/libraries")).unwrap();
    let file = dockerfile.to_str().unwrap();
    let options = ["build", "--isolation", "chroot", "--pull-never", "--file", file, "--tag"];
    buildah.run(&[&options[..], &["portcullis", context.to_str().unwrap()]].concat());

    let inspected = buildah.run(&["inspect", "--type", "image", "portcullis"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let config = &inspected["OCIv1"]["config"];
    assert_eq!(config["User"], "65532:65532", "{config}");
    assert_eq!(config["Entrypoint"], json!(["/portcullis"]), "{config}");
    assert_eq!(config["Cmd"], json!(["agent"]), "{config}");

    let (_, files) = buildah.files("portcullis");
    let there = tree(&files);
    assert_eq!(there.len(), known + 2, "{there:?}");
    assert!(there.contains(&files.join("portcullis-cni")), "{there:?}");
    let in_image = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.args(["--userspec=65532:65532", "--groups="]).arg(&files).arg("/portcullis");
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command
    };
    // A network of its own, for this thread and what it starts.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let done = printed(&mut in_image(&["agent", "cleanup"]));
    assert_eq!(done, "nothing is enforced on this node any more\n");
    // That is the doing of the file: another one without the attribute may not.
    fs::copy(files.join("portcullis"), files.join("plain")).unwrap();
    fs::rename(files.join("plain"), files.join("portcullis")).unwrap();
    let output = in_image(&["agent", "cleanup"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("it lacks the capability NET_ADMIN"), "{said}");
}
