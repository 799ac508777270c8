//! A folder for one test.
#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A folder below the one for temporary files. It goes with the test, also with one that fails.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it, empty. The name is told apart from that of other processes.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Folder {
        let folder = env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
