//! Who has which address on this node, as files: what a runtime has said by ADD and not taken back
//! by DEL. They stand while the agent is away, so that it knows all of it when it is back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::protocol::Attachment;

/// A folder with a file for each address that a pod has, of the name of the address. An address is
/// its last pod's.
#[derive(Debug, Clone)]
pub struct Attachments {
    folder: PathBuf,
}

impl Attachments {
    /// Those of this folder. It need not be there.
    pub fn of(folder: &Path) -> Attachments {
        Attachments { folder: folder.to_owned() }
    }

    /// Notes an attachment, in place of whatever its addresses had before.
    pub(crate) fn put(&self, attachment: &Attachment) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let _lock = self.lock()?;
        let text = serde_json::to_vec(attachment)?;
        for address in &attachment.addresses {
            // A file that is being written is none that is read.
            let new = self.folder.join(".new");
            fs::write(&new, &text)?;
            fs::rename(new, self.folder.join(address.to_string()))?;
        }
        Ok(())
    }

    /// Drops those that are no longer valid, and returns them, each once.
    pub(crate) fn retain(
        &self,
        valid: impl Fn(&Attachment) -> bool,
    ) -> io::Result<Vec<Attachment>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut dropped = Vec::new();
        for (path, attachment) in self.files()? {
            if !valid(&attachment) {
                fs::remove_file(path)?;
                if !dropped.contains(&attachment) {
                    dropped.push(attachment);
                }
            }
        }
        Ok(dropped)
    }

    /// All of them: each with the addresses that are its own still.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read. None at all is fine.
    pub fn read(&self) -> io::Result<Vec<Attachment>> {
        let mut all: Vec<Attachment> = Vec::new();
        for (path, mut attachment) in self.files()? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            attachment.addresses.retain(|address| address.to_string() == name);
            let same = |other: &&mut Attachment| {
                (&other.container, &other.interface)
                    == (&attachment.container, &attachment.interface)
            };
            match all.iter_mut().find(same) {
                Some(other) => other.addresses.append(&mut attachment.addresses),
                None => all.push(attachment),
            }
        }
        Ok(all)
    }

    /// Each file and what is in it. One that is none of ours is passed over.
    fn files(&self) -> io::Result<Vec<(PathBuf, Attachment)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if hidden || !entry.file_type()?.is_file() {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => files.extend(serde_json::from_slice(&text).ok().map(|a| (path, a))),
                // Dropped meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(files)
    }

    /// Held by whoever changes files, until it is dropped.
    fn lock(&self) -> io::Result<File> {
        let file = File::create(self.folder.join(".lock"))?;
        file.lock()?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, addresses: &[&str]) -> Attachment {
        Attachment {
            network: "net".to_owned(),
            container: container.to_owned(),
            interface: "eth0".to_owned(),
            namespace: "shop".to_owned(),
            pod: container.to_owned(),
            uid: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_address_is_its_last_pods() {
        let folder = std::env::temp_dir().join(format!("attachments-{}", std::process::id()));
        let attachments = Attachments::of(&folder);
        assert_eq!(attachments.read().unwrap(), []);
        assert_eq!(attachments.retain(|_| false).unwrap(), []);
        attachments.put(&attachment("a", &["10.0.0.1", "fd00::1"])).unwrap();
        attachments.put(&attachment("b", &["10.0.0.1"])).unwrap();
        let read = attachments.read().unwrap();
        assert_eq!(read, [attachment("b", &["10.0.0.1"]), attachment("a", &["fd00::1"])]);
        // What `a` says now concerns its other address only.
        let dropped = attachments.retain(|of| of.container != "a").unwrap();
        assert_eq!(dropped, [attachment("a", &["10.0.0.1", "fd00::1"])]);
        assert_eq!(attachments.read().unwrap(), [attachment("b", &["10.0.0.1"])]);
        fs::remove_dir_all(folder).unwrap();
    }
}
