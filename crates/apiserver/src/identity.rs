//! What clients know a server by: the key of its certificate authority, and the token that they show.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rcgen::KeyPair;

use crate::{Error, meta};

/// The file in the directory of a state: the token, and below it the key in PEM.
const FILE: &str = "credentials";

/// Who a server is to its clients.
#[derive(Debug)]
pub(crate) struct Identity {
    /// What a client has to show.
    pub(crate) token: String,
    /// The key of the authority. A certificate that is made with it anew is as good as the one before.
    pub(crate) key: KeyPair,
}

impl Identity {
    /// A new one.
    pub(crate) fn new() -> Result<Identity, Error> {
        let token = meta::random::<32>().iter().fold(String::new(), |mut token, byte| {
            let _ = write!(token, "{byte:02x}");
            token
        });
        Ok(Identity { token, key: KeyPair::generate()? })
    }

    /// The one that is kept in this directory, or else a new one, which is kept there from now on.
    pub(crate) fn kept(directory: &Path) -> Result<Identity, Error> {
        let path = directory.join(FILE);
        let failed = |why: String| Error::State { path: path.clone(), why };
        match read_private(&path) {
            Ok(text) => Identity::read(&text).ok_or_else(|| {
                let why = "expected a token, and a key in PEM below it; without the file new ones are \
                           made, and kubeconfigs of before lead nowhere";
                failed(why.to_owned())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity::new()?;
                let text = format!("{}\n{}", identity.token, identity.key.serialize_pem());
                write_private(&path, &text).map_err(|error| failed(error.to_string()))?;
                Ok(identity)
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn read(text: &str) -> Option<Identity> {
        let (token, key) = text.split_once('\n')?;
        let is_token = token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        let key = KeyPair::from_pem(key).ok().filter(|_| is_token)?;
        Some(Identity { token: token.to_owned(), key })
    }
}

/// Reads a file that only its owner can read: what others may know is no secret.
fn read_private(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "expected a file for its owner alone (mode 0600), found mode {mode:04o}, so others may know \
             the token: remove the file, and new ones are made, or chmod 600 it if nobody does"
        )));
    }
    io::read_to_string(file)
}

/// Writes a file that only its owner can read. A file that is there is replaced, whatever its mode.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
