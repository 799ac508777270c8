//! The state in a file, so that it outlives the process.
//!
//! Each change of the state is one transaction, on the disk before anybody is told of it. The history
//! is not kept: after a restart a watch goes on from the latest revision, and from an older one it is
//! told that it is too old.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::Value;

use crate::Error;
use crate::resource::Resource;
use crate::store::{Change, Key};

/// Objects as JSON, by [`Key::path`].
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
/// The latest `resourceVersion`.
const REVISION: &str = "revision";
/// How the rest is to be read.
const FORMAT: &str = "format";
const CURRENT: u64 = 1;

/// A file with a state.
#[derive(Debug)]
pub(crate) struct Disk {
    database: Database,
}

/// The objects that were found, and the latest revision; `None` in a new file.
pub(crate) type Found = (Vec<(Key, Arc<Value>)>, Option<u64>);

/// What stands in the tables.
type Raw = (Vec<(String, Vec<u8>)>, Vec<(String, u64)>);

impl Disk {
    /// Opens the state in this directory, which is made if there is none.
    pub(crate) fn open(directory: &Path) -> Result<(Disk, Found), Error> {
        let path = directory.join("state.redb");
        let failed = |why: String| Error::State { path: path.clone(), why };
        // For its owner alone, whatever others may do elsewhere: there are Secrets in it.
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o700);
        folder.create(directory).map_err(|error| failed(error.to_string()))?;
        let database = Database::create(&path).map_err(|error| failed(error.to_string()))?;
        let disk = Disk { database };
        let (objects, counters) = disk.load().map_err(|error| failed(error.to_string()))?;
        let counter =
            |name: &str| counters.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        if counter(FORMAT).is_some_and(|format| format != CURRENT) {
            return Err(failed(format!(
                "it was written by another version of this program (format {}, expected {CURRENT})",
                counter(FORMAT).unwrap_or_default()
            )));
        }
        let mut read = Vec::new();
        for (path, text) in objects {
            let object = serde_json::from_slice(&text)
                .map_err(|error| failed(format!("object {path}: {error}")))?;
            let key = Key::read(&path).ok_or_else(|| {
                failed(format!("object {path}: this server has no such kind of object"))
            })?;
            read.push((key, Arc::new(object)));
        }
        Ok((disk, (read, counter(REVISION))))
    }

    fn load(&self) -> Result<Raw, redb::Error> {
        let transaction = self.database.begin_write()?;
        // Both tables are there from now on.
        transaction.open_table(OBJECTS)?;
        transaction.open_table(COUNTERS)?;
        transaction.commit()?;
        let transaction = self.database.begin_read()?;
        let (mut objects, mut counters) = (Vec::new(), Vec::new());
        for entry in transaction.open_table(OBJECTS)?.iter()? {
            let (path, text) = entry?;
            objects.push((path.value().to_owned(), text.value().to_owned()));
        }
        for entry in transaction.open_table(COUNTERS)?.iter()? {
            let (name, value) = entry?;
            counters.push((name.value().to_owned(), value.value()));
        }
        Ok((objects, counters))
    }

    /// Writes changes. They are on the disk when this returns.
    pub(crate) fn save(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let Some(last) = changes.last() else { return Ok(()) };
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for change in changes {
                let path = change.key.path();
                match &change.after {
                    Some(object) => {
                        objects.insert(&*path, object.to_string().as_bytes())?;
                    }
                    None => drop(objects.remove(&*path)?),
                }
            }
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(FORMAT, CURRENT)?;
            counters.insert(REVISION, last.revision)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Key {
    /// Where it is in a file: `group/plural/namespace/name`.
    fn path(&self) -> String {
        let (group, plural) = self.resource();
        format!("{group}/{plural}/{}/{}", self.namespace, self.name)
    }

    fn read(path: &str) -> Option<Key> {
        let mut parts = path.splitn(4, '/');
        let (group, plural) = (parts.next()?, parts.next()?);
        let resource = Resource::find(group, plural)?;
        Some(Key::new(resource, parts.next()?, parts.next()?))
    }
}
