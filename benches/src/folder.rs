//! A cluster as a folder of manifests, for as long as it is needed.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use portcullis_tests::generate::{self, Counts};
use portcullis_tests::manifests;

use crate::Outcome;

/// How many objects go into a file.
const OBJECTS: usize = 100;

/// A folder among the system's temporary ones. It goes when this is dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// An empty one.
    pub(crate) fn new(name: &str) -> Outcome<Folder> {
        let path = env::temp_dir().join(format!("portcullis-bench-{}-{name}", process::id()));
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }

    /// One with the manifests of a generated cluster.
    pub(crate) fn of_cluster(counts: Counts) -> Outcome<Folder> {
        let folder = Folder::new("cluster")?;
        let text = manifests::yaml(&generate::cluster(SEED, counts));
        let objects: Vec<&str> = text.split("---\n").collect();
        for (number, objects) in objects.chunks(OBJECTS).enumerate() {
            fs::write(folder.path().join(format!("{number:04}.yaml")), objects.join("---\n"))?;
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is among temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All figures are of the same clusters.
pub(crate) const SEED: u64 = 1;
