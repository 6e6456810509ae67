//! A damaged database is set aside, and a new one takes its place. It records that it must be rebuilt, so that a stop in
//! between does not end the rebuilding.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{FIRST_SEQUENCE, Store, StoreError, database, schema, sessions};
use crate::sys::file_lock::LockFile;
use crate::sys::sync;

/// In the table of counters: when the damaged database was set aside, seconds since 1970, until the new one is rebuilt.
const STARTED: &str = "rebuild_started";

/// In the table of counters: when the database was last rebuilt, seconds since 1970.
const DONE: &str = "rebuilt";

/// More files than this are not set aside under one second.
const NAMES: u32 = 100;

/// The rebuilding of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuild {
    /// When the damaged database was set aside, if the new one is not rebuilt yet.
    pub started: Option<Timestamp>,
    /// When the database was last rebuilt.
    pub done: Option<Timestamp>,
}

/// Sets the damaged database at `path` aside, and puts an empty one that must be rebuilt in its place. At every moment
/// there is one of both at the path. Returns the new path of the damaged one.
///
/// # Errors
/// [`StoreError::InUse`] if another process uses it; a new file cannot be made.
pub fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    // A symbolic link stays, and leads to the new database.
    let path = &fs::canonicalize(path)?;
    let damaged = LockFile::new(File::open(path)?);
    // Held until this returns: two services do not set each other's files aside.
    if !damaged.try_lock()? {
        return Err(StoreError::InUse);
    }
    if database::file_id(&damaged.metadata()?) != database::file_id(&fs::metadata(path)?) {
        return Err(StoreError::InUse);
    }
    let new = suffixed(path, ".new");
    // Left by a start that was interrupted.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let now = Timestamp::now();
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    database::Handle::open(&new)?.write(|transaction| {
        let mut counters = transaction.open_table(schema::COUNTERS)?;
        counters.insert(STARTED, seconds)?;
        // New snapshots come after those of the lost database, which made fewer than one a second.
        counters.insert("sequence", FIRST_SEQUENCE + seconds)?;
        // Revocations are lost with the database, so all tokens that may have been revoked are.
        sessions::revoke_all_before(transaction, u64::try_from(now.as_millisecond()).unwrap_or_default())
    })?;
    let aside = link_aside(path, now)?;
    fs::rename(&new, path)?;
    sync::directory_at(database::folder_of(path))?;
    Ok(aside)
}

/// Gives the file a second name. No file with that name is replaced.
fn link_aside(path: &Path, now: Timestamp) -> Result<PathBuf, StoreError> {
    let second = now.strftime("%Y%m%dT%H%M%SZ");
    let mut names = (0..NAMES).map(|number| match number {
        0 => suffixed(path, &format!(".damaged-{second}")),
        _ => suffixed(path, &format!(".damaged-{second}-{number}")),
    });
    let linked = names.find_map(|aside| match fs::hard_link(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
        linked => Some(linked.map(|()| aside)),
    });
    Ok(linked.unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?)
}

/// `path` with `suffix` after the name of the file.
pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Store {
    /// Whether the database must be rebuilt, or was.
    pub fn rebuild(&self) -> Result<Rebuild, StoreError> {
        self.handle.read(|transaction| {
            let counters = transaction.open_table(schema::COUNTERS)?;
            let at = |name| -> Result<Option<Timestamp>, StoreError> {
                let seconds = counters.get(name)?.and_then(|seconds| i64::try_from(seconds.value()).ok());
                Ok(seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()))
            };
            Ok(Rebuild { started: at(STARTED)?, done: at(DONE)? })
        })
    }

    /// Records that the database is rebuilt.
    pub fn end_rebuild(&self) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            let mut counters = transaction.open_table(schema::COUNTERS)?;
            counters.remove(STARTED)?;
            counters.insert(DONE, u64::try_from(Timestamp::now().as_second()).unwrap_or_default())?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{begin, snapshot};
    use super::*;
    use crate::model::Described;

    #[test]
    fn damaged_database_keeps_its_bytes_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exporter.db");
        fs::write(&path, "damaged").unwrap();
        let link = dir.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        // As an interrupted start leaves it.
        fs::write(suffixed(&path, ".new"), "half").unwrap();
        let aside = set_aside(&link).unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"damaged");
        assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("exporter.db.damaged-20"), "{aside:?}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let store = Store::open(&link).unwrap();
        assert!(matches!(store.rebuild().unwrap(), Rebuild { started: Some(_), done: None }));
        // The next snapshot follows those of the lost database.
        let next = begin(&store, snapshot(1), None);
        store.commit(&[(Described::alone(next.clone()), None)]).unwrap();
        assert!(next.sequence > FIRST_SEQUENCE + 1_700_000_000, "{}", next.sequence);
        store.end_rebuild().unwrap();
        assert!(matches!(store.rebuild().unwrap(), Rebuild { started: None, done: Some(_) }));
        // A second one does not replace the first.
        assert!(matches!(set_aside(&path), Err(StoreError::InUse)));
        drop(store);
        let other = set_aside(&path).unwrap();
        assert_ne!(aside, other);
        assert_eq!(fs::read(&aside).unwrap(), b"damaged");
    }
}
