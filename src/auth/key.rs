//! The key that signs tokens: that of the config, or one that the service makes and keeps beside its database.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use secrecy::SecretString;

use crate::config::{Config, is_given_away, weakness};
use crate::model::hex;
use crate::sys::sync;

/// Random bytes in a new key, which is written as hexadecimal digits.
const LENGTH: usize = 32;

/// A larger file is not a key.
const MAX_SIZE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file must not be used. The text contains the remedy.
    #[error("{0}")]
    Unfit(String),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// The path of the key for the database at `db_file`.
pub fn path(db_file: &Path) -> PathBuf {
    let mut name = OsString::from(db_file);
    name.push(".jwt-secret");
    name.into()
}

/// The key of `config`: `jwt.secret`, or the one in the file. `None` if neither exists.
pub fn find(config: &Config) -> Result<Option<SecretString>, KeyError> {
    if let Some(secret) = &config.jwt.secret {
        return Ok(Some(secret.clone()));
    }
    let path = path(&config.db_file);
    let key = read(&path)?;
    let sync = config.hooks.sync.as_ref().map(|sync| &sync.secret);
    if key.as_ref().zip(sync).is_some_and(|(key, sync)| is_given_away(key, sync)) {
        let shown = path.display();
        return Err(KeyError::Unfit(format!(
            "{shown}: contains hooks.sync.secret, which is sent to guests: a guest could log in as any user; set another \
             hooks.sync.secret and remove {shown}: the service creates a new key"
        )));
    }
    Ok(key)
}

/// Like [`find`], and makes a key if there is none. Only the process that has the database may call this.
pub fn find_or_make(config: &Config) -> Result<SecretString, KeyError> {
    if let Some(key) = find(config)? {
        return Ok(key);
    }
    let path = path(&config.db_file);
    make(&path).map_err(|error| KeyError::Io { path: path.clone(), error })?;
    tracing::info!(path = %path.display(), "jwt.secret is not set: made a key to sign tokens");
    let gone = || KeyError::Io { path: path.clone(), error: io::ErrorKind::NotFound.into() };
    read(&path)?.ok_or_else(gone)
}

fn read(path: &Path) -> Result<Option<SecretString>, KeyError> {
    let (shown, failed) = (path.display(), |error| KeyError::Io { path: path.to_owned(), error });
    let unfit = |what: &str| Err(KeyError::Unfit(format!("{shown}: {what}")));
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return unfit("is a symbolic link, which is not followed; put the file itself there, or remove the link");
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    let owner = metadata.uid();
    if !metadata.is_file() {
        return unfit("is not a regular file; remove it and the service creates a new key");
    }
    if metadata.mode() & 0o077 != 0 {
        return unfit(&format!(
            "can be read or written by users other than its owner, but contains the key that signs tokens; if no \
             other user has read it: chmod 0600 {shown}; otherwise remove it and the service creates a new one"
        ));
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return unfit(&format!("belongs to the user {owner}; remove it and the service creates a new key"));
    }
    let mut text = String::new();
    let length = file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(failed)?;
    let key = SecretString::from(text.trim());
    if length as u64 > MAX_SIZE {
        return unfit("is too large for a key; remove it and the service creates a new one");
    }
    match weakness(&key) {
        Some(why) => unfit(&format!("{why}; remove it and the service creates a new key")),
        None => Ok(Some(key)),
    }
}

/// After a crash, the file is complete or does not exist.
fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0; LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
    let text = hex(&bytes);
    let mut draft = OsString::from(path);
    draft.push(".new");
    // A crash may have left it.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync::directory_at(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use secrecy::ExposeSecret;

    use super::*;
    use crate::config;

    fn config(db_file: &Path, lines: &str) -> Config {
        config::parse(&format!("db_file = {db_file:?}\n{lines}")).unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_readable_only_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let config_of = |lines: &str| config(&dir.path().join("x.db"), lines);
        assert!(find(&config_of("")).unwrap().is_none());
        // A start was killed.
        fs::write(dir.path().join("x.db.jwt-secret.new"), "half").unwrap();
        let key = find_or_make(&config_of("")).unwrap();
        assert_eq!(key.expose_secret().len(), 64);
        let metadata = fs::metadata(dir.path().join("x.db.jwt-secret")).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the draft was left behind");
        assert_eq!(find_or_make(&config_of("")).unwrap().expose_secret(), key.expose_secret());
        let given = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
        assert_eq!(find(&config_of(given)).unwrap().unwrap().expose_secret(), "0123456789abcdef0123456789abcdef");
        let same = format!("[hooks.sync]\nsecret = \"{}\"\n", key.expose_secret());
        assert!(matches!(find(&config_of(&same)), Err(KeyError::Unfit(why)) if why.contains("hooks.sync.secret")));
    }

    #[test]
    fn an_unsafe_key_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (config, path) = (config(&dir.path().join("x.db"), ""), dir.path().join("x.db.jwt-secret"));
        let good = "5f9c2d7e8a1b4c3d6e7f8091a2b3c4d5";
        for (text, mode, expected) in [
            (good, 0o640, "chmod 0600"),
            (good, 0o602, "chmod 0600"),
            ("", 0o600, "is shorter than 32 bytes"),
            ("5f9c2d7e", 0o600, "is shorter than 32 bytes"),
            (&"ab".repeat(32), 0o600, "can be guessed"),
            (&good.repeat(200), 0o600, "is too large for a key"),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refusal = find_or_make(&config).unwrap_err().to_string();
            assert!(refusal.contains(expected) && refusal.contains("x.db.jwt-secret"), "{refusal}");
            assert!(text.is_empty() || !refusal.contains(text), "{refusal}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            fs::remove_file(&path).unwrap();
        }
        fs::write(dir.path().join("elsewhere"), good).unwrap();
        symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(find_or_make(&config).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(find_or_make(&config).unwrap_err().to_string().contains("not a regular file"));
    }
}
