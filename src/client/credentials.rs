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
    /// What the cache has.
    Cached,
    /// The socket on this host knows its peer.
    Peer,
}

/// The tokens of a log-in.
#[derive(Clone)]
pub struct Tokens {
    pub token: SecretString,
    /// Renews them once. Older services have none.
    pub refresh: Option<SecretString>,
}

/// A file for the tokens of one user at one service, readable only by its owner: the token, and in the next line the
/// refresh token, if there is one.
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

    /// The stored tokens. A file that others can read or that belongs to someone else is not used.
    pub fn load(&self) -> Option<Tokens> {
        let text = read_private(&self.path).ok()?;
        let mut lines = text.expose_secret().lines().map(SecretString::from);
        Some(Tokens { token: lines.next()?, refresh: lines.next() })
    }

    /// Waits until no other process renews the tokens. A refresh token can be used once. Dropping the file ends this.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
        let path = self.path.with_extension("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }

    /// # Errors
    /// The directory or the file cannot be written.
    pub fn store(&self, tokens: &Tokens) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let new = self.path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(tokens.token.expose_secret().as_bytes())?;
        if let Some(refresh) = &tokens.refresh {
            file.write_all(format!("\n{}", refresh.expose_secret()).as_bytes())?;
        }
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
        for refresh in [Some("once"), None] {
            let tokens = Tokens { token: "secret".into(), refresh: refresh.map(SecretString::from) };
            let _lock = cache.lock().unwrap();
            cache.store(&tokens).unwrap();
            let loaded = cache.load().unwrap();
            assert_eq!(loaded.token.expose_secret(), "secret");
            assert_eq!(loaded.refresh.as_ref().map(ExposeSecret::expose_secret), refresh);
        }
        assert!(TokenCache::new(&directory, &address, "other").load().is_none());
        let mode = fs::metadata(&cache.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&cache.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(cache.load().is_none());
        assert!(cache.remove().unwrap() && !cache.remove().unwrap());
    }
}
