//! The plugin's place in a node's network configuration: into the list that the runtime uses, and
//! out of it again, everything else byte for byte as it was.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::PLUGIN;
use crate::configuration::VERSIONS;

/// Added to the name of a configuration of one plugin while a list stands in for it.
const PUT_ASIDE: &str = ".portcullis";

/// Why the configuration was left as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What file or folder.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// Nothing to chain into.
    #[error(
        "{folder} has no network configuration: the plugin comes after one that gives addresses; \
         install the cluster's CNI first", folder = folder.display()
    )]
    Nothing {
        /// Where there is none.
        folder: PathBuf,
    },
    /// It cannot have a second plugin.
    #[error(
        "{path} is of CNI version {version:?}, with which the plugin cannot be chained; supported \
         are {}", VERSIONS.join(", "), path = path.display()
    )]
    Version {
        /// The configuration.
        path: PathBuf,
        /// What it says.
        version: String,
    },
    /// The name that it needs is taken.
    #[error(
        "{path} is there already, and the runtime uses another file before it: remove the one that \
         is not meant", path = path.display()
    )]
    Taken {
        /// The file in the way.
        path: PathBuf,
    },
}

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The plugin is in it now.
    Chained(PathBuf),
    /// It was in it already, as it should be.
    AsItWas(PathBuf),
    /// The plugin is no longer in it.
    TakenOut(PathBuf),
    /// It is there again, in place of the list that stood in for it.
    PutBack(PathBuf),
}

/// The plugin's own configuration: what is put into the list.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where the agent listens, if not at [`SOCKET`](crate::SOCKET).
    pub socket: Option<PathBuf>,
    /// Where the plugin keeps who has which address, if not in [`ATTACHMENTS`](crate::ATTACHMENTS).
    pub attachments: Option<PathBuf>,
    /// `refuse`, `closed` or `open`, if it is to be said.
    pub when_agent_is_down: Option<String>,
}

impl Settings {
    fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("type".to_owned(), PLUGIN.into());
        for (key, path) in [("socket", &self.socket), ("attachments", &self.attachments)] {
            if let Some(path) = path {
                object.insert(key.to_owned(), path.to_string_lossy().into());
            }
        }
        if let Some(when) = &self.when_agent_is_down {
            object.insert("whenAgentIsDown".to_owned(), when.as_str().into());
        }
        Value::Object(object).to_string()
    }
}

/// Chains the plugin into the configuration that a runtime uses of this folder: of those that can be
/// read, the first by name.
///
/// # Errors
/// Nothing was changed.
pub fn install(folder: &Path, settings: &Settings) -> Result<Change, Error> {
    let ours = settings.json();
    for path in configurations(folder)? {
        let text = read(&path)?;
        if path.extension() == Some(OsStr::new("conflist")) {
            let Some(list) = List::read(&text) else { continue };
            check_version(&path, list.version)?;
            let new = list.with(&ours);
            if new == text {
                return Ok(Change::AsItWas(path));
            }
            replace(&path, &new)?;
            return Ok(Change::Chained(path));
        }
        let Some(single) = Single::read(&text) else { continue };
        check_version(&path, single.version)?;
        let list = path.with_extension("conflist");
        if list.exists() {
            return Err(Error::Taken { path: list });
        }
        // By name the list comes after the single configuration: nothing has changed for the
        // runtime until that is put aside.
        write(&list, &single.list(&text, &ours), mode(&path)?)?;
        rename(&path, &put_aside(&path))?;
        return Ok(Change::Chained(list));
    }
    Err(Error::Nothing { folder: folder.to_owned() })
}

/// Takes the plugin out of all configurations of the folder. To find none is fine.
///
/// # Errors
/// What was done before it stands.
pub fn uninstall(folder: &Path) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for path in configurations(folder)? {
        let text = read(&path)?;
        let Some(list) = List::read(&text).filter(|list| list.ours().is_some()) else { continue };
        let without = list.without();
        match replaced(&path, &without) {
            Some(single) => {
                // At once the first by name, and so in use.
                rename(&put_aside(&single), &single)?;
                fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
                changes.push(Change::PutBack(single));
            }
            None => {
                replace(&path, &without)?;
                changes.push(Change::TakenOut(path));
            }
        }
    }
    Ok(changes)
}

/// The single configuration that this list stands in for, if it is still what was made of it.
fn replaced(list: &Path, without: &str) -> Option<PathBuf> {
    ["conf", "json"].map(|extension| list.with_extension(extension)).into_iter().find(|single| {
        let text = fs::read_to_string(put_aside(single)).unwrap_or_default();
        let made = Single::read(&text).map(|read| read.list(&text, &Settings::default().json()));
        let made = made.as_deref().and_then(List::read).map(|list| list.without());
        !single.exists() && made.as_deref() == Some(without)
    })
}

fn put_aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PUT_ASIDE);
    name.into()
}

/// A list of plugins, with the place of each in the text.
struct List<'a> {
    text: &'a str,
    version: &'a str,
    plugins: Vec<&'a str>,
}

impl<'a> List<'a> {
    /// `None` where a runtime finds no list of plugins in it either.
    fn read(text: &'a str) -> Option<List<'a>> {
        #[derive(Deserialize)]
        struct Raw<'a> {
            #[serde(default, rename = "cniVersion")]
            version: &'a str,
            name: String,
            #[serde(borrow)]
            plugins: Vec<&'a RawValue>,
        }
        let raw: Raw<'a> =
            serde_json::from_str(text).ok().filter(|raw: &Raw| !raw.name.is_empty())?;
        let plugins: Vec<&str> = raw.plugins.into_iter().map(RawValue::get).collect();
        let all_have_types = plugins.iter().all(|plugin| kind(plugin).is_some());
        (!plugins.is_empty() && all_have_types).then_some(List {
            text,
            version: raw.version,
            plugins,
        })
    }

    /// Where a plugin starts and ends in the text.
    fn place(&self, index: usize) -> (usize, usize) {
        let plugin = self.plugins[index];
        // It was read from this text without being copied.
        let start = plugin.as_ptr().addr() - self.text.as_ptr().addr();
        (start, start + plugin.len())
    }

    fn ours(&self) -> Option<usize> {
        self.plugins.iter().position(|plugin| kind(plugin).as_deref() == Some(PLUGIN))
    }

    /// The text with this plugin in it: at the end, where the addresses are known, set off as the
    /// plugin before it is.
    fn with(&self, ours: &str) -> String {
        let same = |index| {
            let value = |text| serde_json::from_str::<Value>(text).ok();
            index > 0 && value(self.plugins[index]) == value(ours)
        };
        match self.ours() {
            Some(index) if same(index) => self.text.to_owned(),
            Some(_) => {
                let without = self.without();
                List::read(&without).map_or(without.clone(), |list| list.with(ours))
            }
            None => {
                let (start, end) = self.place(self.plugins.len() - 1);
                let before = &self.text[..start];
                let gap = &before[before.trim_end().len()..];
                format!("{},{gap}{ours}{}", &self.text[..end], &self.text[end..])
            }
        }
    }

    /// The text without our plugin, and without the comma that set it off.
    fn without(&self) -> String {
        let Some(index) = self.ours() else { return self.text.to_owned() };
        let (start, end) = self.place(index);
        let (start, end) = match index {
            0 if self.plugins.len() > 1 => (start, self.place(1).0),
            0 => (start, end),
            _ => (self.place(index - 1).1, end),
        };
        let text = format!("{}{}", &self.text[..start], &self.text[end..]);
        // Somebody may have put it there twice.
        match List::read(&text) {
            Some(list) if list.ours().is_some() => list.without(),
            _ => text,
        }
    }
}

/// A configuration of one plugin.
struct Single<'a> {
    version: &'a str,
    name: String,
}

impl<'a> Single<'a> {
    fn read(text: &'a str) -> Option<Single<'a>> {
        #[derive(Deserialize)]
        struct Raw<'a> {
            #[serde(default, rename = "cniVersion")]
            version: &'a str,
            name: String,
            r#type: String,
        }
        let raw: Raw<'a> = serde_json::from_str(text).ok()?;
        (!raw.r#type.is_empty() && raw.r#type != PLUGIN)
            .then_some(Single { version: raw.version, name: raw.name })
    }

    /// A list of this plugin, as it stands in `text`, and ours.
    fn list(&self, text: &str, ours: &str) -> String {
        format!(
            "{{\"cniVersion\":{},\"name\":{},\"plugins\":[\n{},\n{ours}]}}\n",
            json!(self.version),
            json!(self.name),
            text.trim()
        )
    }
}

/// The `type` of a plugin.
fn kind(plugin: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
    }
    serde_json::from_str::<Typed>(plugin).ok().map(|typed| typed.r#type)
}

fn check_version(path: &Path, version: &str) -> Result<(), Error> {
    match VERSIONS.contains(&version) {
        true => Ok(()),
        false => Err(Error::Version { path: path.to_owned(), version: version.to_owned() }),
    }
}

/// What a runtime looks at, in its order.
fn configurations(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |source| Error::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, Error> {
    let text = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    // What is no text is nothing that a runtime can read either.
    Ok(String::from_utf8(text).unwrap_or_default())
}

fn mode(path: &Path) -> Result<Permissions, Error> {
    let metadata = fs::metadata(path);
    Ok(metadata.map_err(|source| Error::Io { path: path.to_owned(), source })?.permissions())
}

/// Replaces what is in a file, in one piece.
fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let real = fs::canonicalize(path);
    let real = real.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    write(&real, text, mode(&real)?)
}

/// Puts a file there, in one piece.
fn write(path: &Path, text: &str, mode: Permissions) -> Result<(), Error> {
    put(path, text.as_bytes(), mode).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn put(path: &Path, bytes: &[u8], mode: Permissions) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".portcullis-new");
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.set_permissions(mode)?;
    file.sync_all()?;
    fs::rename(new, path)
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Io { path: from.to_owned(), source })
}

/// Copies the plugin's program to where a runtime looks for it, in one piece: pods may be starting.
/// Tells whether it was another before.
///
/// # Errors
/// It is not there, or cannot be written there.
pub fn copy_program(program: &Path, folder: &Path) -> Result<bool, Error> {
    let bytes = fs::read(program);
    let bytes = bytes.map_err(|source| Error::Io { path: program.to_owned(), source })?;
    let target = folder.join(PLUGIN);
    if fs::read(&target).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    put(&target, &bytes, Permissions::from_mode(0o755))
        .map_err(|source| Error::Io { path: target, source })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {"hairpinMode": true, "plugins": []}
    },
    {
      "type": "portmap", "capabilities": {"portMappings": true}
    }
  ]
}
"#;

    fn ours() -> String {
        Settings::default().json()
    }

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("cni-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        folder
    }

    fn files(folder: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn it_comes_last_and_looks_as_if_it_had_been_there() {
        let with = List::read(LIST).unwrap().with(&ours());
        let wanted = LIST
            .replace("true}\n    }\n  ]", "true}\n    },\n    {\"type\":\"portcullis-cni\"}\n  ]");
        assert_eq!(with, wanted);
        assert_eq!(List::read(&with).unwrap().with(&ours()), with, "twice is once");
        assert_eq!(List::read(&with).unwrap().without(), LIST);
    }

    #[test]
    fn other_settings_take_the_place_of_those_before() {
        let with = List::read(LIST).unwrap().with(&ours());
        let settings =
            Settings { when_agent_is_down: Some("refuse".to_owned()), ..Settings::default() };
        let other = List::read(&with).unwrap().with(&settings.json());
        assert!(other.contains("{\"type\":\"portcullis-cni\",\"whenAgentIsDown\":\"refuse\"}"));
        assert_eq!(List::read(&other).unwrap().without(), LIST);
    }

    #[test]
    fn the_first_that_can_be_read_is_the_one_that_the_runtime_uses() {
        let all = [
            ("05-broken.conflist", "{"),
            ("06-empty.conflist", r#"{"cniVersion": "1.0.0", "name": "e", "plugins": []}"#),
            ("10-flannel.conflist", LIST),
            ("20-other.conflist", LIST),
            ("99-loopback.conf", r#"{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}"#),
        ];
        let folder = folder("first", &all);
        let before = files(&folder);
        let path = folder.join("10-flannel.conflist");
        let settings = Settings::default();
        assert_eq!(install(&folder, &settings).unwrap(), Change::Chained(path.clone()));
        assert_eq!(install(&folder, &settings).unwrap(), Change::AsItWas(path.clone()));
        let after = files(&folder);
        let changed = before.iter().zip(&after).filter(|(a, b)| a != b);
        assert_eq!(
            changed.map(|(_, after)| &*after.0).collect::<Vec<_>>(),
            ["10-flannel.conflist"]
        );
        assert_eq!(uninstall(&folder).unwrap(), [Change::TakenOut(path)]);
        assert_eq!(files(&folder), before);
        assert_eq!(uninstall(&folder).unwrap(), []);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_configuration_of_one_plugin_becomes_a_list_and_comes_back() {
        let single = "{ \"cniVersion\": \"0.4.0\",\n  \"name\": \"net\", \"type\": \"bridge\" }\n";
        let folder = folder("single", &[("10-net.conf", single), ("20-other.conflist", LIST)]);
        let before = files(&folder);
        let list = folder.join("10-net.conflist");
        let settings =
            Settings { when_agent_is_down: Some("open".to_owned()), ..Settings::default() };
        assert_eq!(install(&folder, &settings).unwrap(), Change::Chained(list.clone()));
        let text = fs::read_to_string(&list).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["cniVersion"], "0.4.0");
        assert_eq!(read["name"], "net");
        assert_eq!(read["plugins"][0]["type"], "bridge");
        assert_eq!(read["plugins"][1]["type"], PLUGIN);
        assert!(!folder.join("10-net.conf").exists(), "the runtime would take it first");
        assert_eq!(install(&folder, &settings).unwrap(), Change::AsItWas(list));
        let back = Change::PutBack(folder.join("10-net.conf"));
        assert_eq!(uninstall(&folder).unwrap(), [back]);
        assert_eq!(files(&folder), before);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_was_changed_in_the_list_meanwhile_is_not_lost() {
        let single = r#"{"cniVersion": "0.4.0", "name": "net", "type": "bridge"}"#;
        let folder = folder("edited", &[("10-net.conf", single)]);
        install(&folder, &Settings::default()).unwrap();
        let list = folder.join("10-net.conflist");
        let text = fs::read_to_string(&list).unwrap().replace("bridge", "macvlan");
        fs::write(&list, &text).unwrap();
        assert_eq!(uninstall(&folder).unwrap(), [Change::TakenOut(list.clone())]);
        assert!(fs::read_to_string(&list).unwrap().contains("macvlan"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_chained_is_left_alone_and_said() {
        let old = LIST.replace("0.3.1", "0.2.0");
        let folder = folder("old", &[("10-flannel.conflist", &old)]);
        let before = files(&folder);
        let error = install(&folder, &Settings::default()).unwrap_err().to_string();
        assert!(error.contains("\"0.2.0\"") && error.contains("10-flannel.conflist"), "{error}");
        assert_eq!(files(&folder), before);
        fs::remove_file(folder.join("10-flannel.conflist")).unwrap();
        let error = install(&folder, &Settings::default()).unwrap_err().to_string();
        assert!(error.contains("has no network configuration"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_program_is_copied_once() {
        let folder = folder("program", &[("built", "a program")]);
        assert!(copy_program(&folder.join("built"), &folder).unwrap());
        assert!(!copy_program(&folder.join("built"), &folder).unwrap());
        let mode = fs::metadata(folder.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        fs::remove_dir_all(folder).unwrap();
    }

    /// JSON with blanks wherever they may be, and strings that look like structure.
    fn written(value: &Value, blanks: &mut impl Iterator<Item = &'static str>) -> String {
        let mut blank = || blanks.next().unwrap_or("");
        match value {
            Value::Object(map) => {
                let members: Vec<String> = map
                    .iter()
                    .map(|(key, value)| {
                        let (a, b) = (blank(), blank());
                        format!("{a}{}:{b}{}{a}", json!(key), json!(value))
                    })
                    .collect();
                format!("{{{}}}", members.join(","))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn in_and_out_again_is_byte_for_byte_what_was(
            count in 1..5usize,
            strange in "[\\[\\]{},\":\\\\a-z ]{0,12}",
            seed in any::<u64>(),
        ) {
            let all = ["", " ", "\n", "\t", "  \r\n  "];
            let mut blanks = (0..).map(|i| all[(seed.rotate_left(i * 7) % 5) as usize]);
            let plugins: Vec<String> = (0..count)
                .map(|i| written(&json!({"type": format!("p{i}"), "x": strange, "y": {"z": [1, strange]}}), &mut blanks))
                .collect();
            let gap = all[(seed % 5) as usize];
            let list = plugins.join(&format!("{gap},{gap}"));
            let name = json!(format!("n{strange}"));
            let text = format!("{gap}{{\"plugins\":{gap}[{gap}{list}{gap}],\"cniVersion\":\"1.0.0\",\"name\":{name}}}{gap}");
            let read = List::read(&text).unwrap();
            let with = read.with(&ours());
            let value: Value = serde_json::from_str(&with).unwrap();
            prop_assert_eq!(value["plugins"].as_array().unwrap().len(), count + 1);
            prop_assert_eq!(&value["plugins"][count]["type"], PLUGIN);
            prop_assert_eq!(List::read(&with).unwrap().without(), text);
        }
    }
}
