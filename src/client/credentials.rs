//! Who the client is, and the token it got for that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::address::Address;

pub struct Password {
    pub user: String,
    pub password: SecretString,
}

/// How the client logs in.
pub enum Credentials {
    Password(Password),
    /// A token that this program cannot renew.
    Token(SecretString),
    /// The socket on this host knows its peer.
    Peer,
}

/// A file for the token of one user at one service, readable only by its owner.
pub struct TokenCache {
    path: PathBuf,
}

/// A JWT is shorter.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

impl TokenCache {
    /// In `directory`, which is created when a token is stored.
    pub fn new(directory: &Path, address: &Address, user: &str) -> Self {
        let key = blake3::hash(format!("{address}\0{user}").as_bytes()).to_hex();
        Self { path: directory.join(format!("{}.token", &key[..32])) }
    }

    /// The stored token. A file that others can read or that belongs to someone else is not used.
    pub fn load(&self) -> Option<SecretString> {
        let text = read_private(&self.path).ok()?;
        (!text.expose_secret().is_empty()).then_some(text)
    }

    /// # Errors
    /// The directory or the file cannot be written.
    pub fn store(&self, token: &SecretString) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let new = self.path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(token.expose_secret().as_bytes())?;
        fs::rename(&new, &self.path)
    }

    /// Returns whether there was a token.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Reads a short secret from a file of this user that no one else can read. White space at the end does not count.
///
/// # Errors
/// Its text says what to do.
pub fn read_private(path: &Path) -> io::Result<SecretString> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let own = nix::unistd::geteuid().as_raw();
    let problem = if !metadata.is_file() {
        "is not a regular file"
    } else if metadata.mode() & 0o077 != 0 {
        "can be read by others; run chmod 600 on it"
    } else if metadata.uid() != own && own != 0 {
        "belongs to another user"
    } else if metadata.len() > MAX_TOKEN_BYTES {
        "is too long for a secret"
    } else {
        let text = io::read_to_string(file)?;
        return Ok(text.trim_end().to_owned().into());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_stored_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("a/b");
        let address = Address::parse("https://host").unwrap();
        let cache = TokenCache::new(&directory, &address, "admin");
        assert!(cache.load().is_none());
        cache.store(&"secret".to_owned().into()).unwrap();
        assert_eq!(cache.load().unwrap().expose_secret(), "secret");
        assert!(TokenCache::new(&directory, &address, "other").load().is_none());
        let mode = fs::metadata(&cache.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&cache.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(cache.load().is_none());
        assert!(cache.remove().unwrap() && !cache.remove().unwrap());
    }
}
