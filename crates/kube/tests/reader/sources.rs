use std::fs;
use std::path::{Path, PathBuf};

use portcullis_kube::{Input, Options, Source, load};

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("portcullis-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn pod(&self, file: &str, name: &str) {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}");
        self.write(file, text.as_bytes());
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn load(&self, path: &str, options: &Options) -> (String, String) {
        let input = load(&[Source::Path(self.0.join(path))], options);
        (pods(&input), crate::lines(&input).replace(&*self.0.to_string_lossy(), "DIR"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pods(input: &Input) -> String {
    let names: Vec<_> = input.cluster.pods.iter().map(|p| p.name.as_str()).collect();
    names.join(" ")
}

#[test]
fn a_directory_is_its_own_manifests_in_order_and_with_recursive_those_below() {
    let dir = Directory::new("order");
    for (file, name) in
        [("b.yml", "b"), ("a.json", "a"), ("c.yaml", "c"), ("bb/x.yaml", "x"), ("z.txt", "z")]
    {
        dir.pod(file, name);
    }
    assert_eq!(dir.load("", &Options::default()), ("a b c".into(), String::new()));
    let recursive = Options { recursive: true, ..Options::default() };
    assert_eq!(dir.load("", &recursive), ("a b x c".into(), String::new()));
    assert_eq!(dir.load("z.txt", &recursive), ("z".into(), String::new()));
}

#[cfg(unix)]
#[test]
fn links_are_followed_to_files_and_not_to_directories() {
    let dir = Directory::new("links");
    dir.pod("real/a.yaml", "a");
    dir.pod("other.txt", "b");
    std::os::unix::fs::symlink("../real", dir.0.join("real/loop")).unwrap();
    std::os::unix::fs::symlink("other.txt", dir.0.join("b.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.0.join("c.yaml")).unwrap();
    let recursive = Options { recursive: true, ..Options::default() };
    let (pods, said) = dir.load("", &recursive);
    assert_eq!(pods, "b a");
    insta::assert_snapshot!(said, @"DIR/c.yaml: error: No such file or directory (os error 2)");
}

#[test]
fn what_is_not_there_or_holds_nothing_is_an_error() {
    let dir = Directory::new("nothing");
    dir.write("empty/readme.md", b"");
    dir.pod("below/deep/a.yaml", "a");
    let says = |path: &str| dir.load(path, &Options::default()).1;
    insta::assert_snapshot!([says("absent.yaml"), says("empty"), says("below")].concat(), @"
    DIR/absent.yaml: error: No such file or directory (os error 2)
    DIR/empty: error: no *.yaml, *.yml or *.json in this directory itself; -R looks below it
    DIR/below: error: no *.yaml, *.yml or *.json in this directory itself; -R looks below it
    ");
}

#[test]
fn what_is_no_text_is_an_error_with_its_place() {
    let dir = Directory::new("text");
    dir.write("a.yaml", b"ok: 1\nbad: \xff\n");
    dir.write("b.yaml", b"a: b\nc: d\0e\n");
    dir.write("c.yaml", b"\xff\xfea\0");
    dir.write("d.yaml", "a: \u{1b}[1m".as_bytes());
    insta::assert_snapshot!(dir.load("", &Options::default()).1, @"
    DIR/a.yaml:2:6: error: not UTF-8: the byte 0xff
    DIR/b.yaml:2:5: error: a control character, the byte 0x00
    DIR/c.yaml: error: this is UTF-16: save it as UTF-8
    DIR/d.yaml:1:4: error: a control character, the byte 0x1b
    ");
}

#[test]
fn an_input_over_the_limit_is_refused() {
    let dir = Directory::new("large");
    dir.pod("a.yaml", "a");
    dir.pod("b.yaml", "b");
    let size = fs::metadata(dir.0.join("a.yaml")).unwrap().len();
    let options = Options { max_bytes: 2 * size - 1, ..Options::default() };
    let (pods, said) = dir.load("", &options);
    assert_eq!(pods, "a");
    insta::assert_snapshot!(said.replace(&options.max_bytes.to_string(), "N"), @"DIR/b.yaml: error: the input is larger than the limit of N bytes");
    let endless = load(&[Source::Path(Path::new("/dev/zero").into())], &options);
    let said = crate::lines(&endless).replace(&options.max_bytes.to_string(), "N");
    insta::assert_snapshot!(said, @"/dev/zero: error: the input is larger than the limit of N bytes");
}
