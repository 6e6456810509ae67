//! Holds a snapshot against the retention sweep of every exporter of a pool: flock(2) on its manifest. Those who read the
//! snapshot share the lock, and the sweeper needs it alone. It is released when its holder ends, however that happens.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::{SnapshotDir, manifest};
use crate::model::SnapshotId;
use crate::sys::file_lock::LockFile;
use crate::sys::folder::Folder;

/// Held until this is dropped.
#[derive(Debug)]
pub struct Hold {
    #[expect(dead_code, reason = "the lock is that of the open file")]
    file: LockFile,
}

/// Who else may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Others that read it.
    Shared,
    /// No other.
    Alone,
}

/// Holds the snapshot `id` if that is possible at once. `None`: others hold it, or there is no such snapshot any more.
///
/// # Errors
/// Those of openat(2) and flock(2).
pub fn try_hold(root: &Folder, id: SnapshotId, sharing: Sharing) -> io::Result<Option<Hold>> {
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    let folder = match SnapshotDir::new(root, id).open() {
        Ok(folder) => folder,
        Err(error) => return gone(error),
    };
    let file = match folder.open_file(manifest::FILE_NAME) {
        Ok(file) => LockFile::new(file),
        Err(error) => return gone(error),
    };
    let is_locked = match sharing {
        Sharing::Shared => file.try_lock_shared()?,
        Sharing::Alone => file.try_lock()?,
    };
    // It may have been removed before the lock was taken.
    match folder.stat(manifest::FILE_NAME) {
        Ok(found) if is_locked && found.ino() == file.metadata()?.ino() => Ok(Some(Hold { file })),
        Ok(_) => Ok(None),
        Err(error) => gone(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

    #[test]
    fn readers_share_a_snapshot_and_the_sweeper_needs_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("CoriolisSnapshots").join(ID);
        fs::create_dir_all(&folder).unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let hold = |sharing| try_hold(&root, ID.parse().unwrap(), sharing).unwrap();
        assert!(hold(Sharing::Shared).is_none(), "it has no manifest");
        fs::write(folder.join(".manifest.json"), "{}").unwrap();
        let readers = [hold(Sharing::Shared).unwrap(), hold(Sharing::Shared).unwrap()];
        assert!(hold(Sharing::Alone).is_none());
        drop(readers);
        let sweeper = hold(Sharing::Alone).unwrap();
        assert!(hold(Sharing::Shared).is_none() && hold(Sharing::Alone).is_none());
        drop(sweeper);
        fs::remove_dir_all(&folder).unwrap();
        assert!(hold(Sharing::Shared).is_none(), "it is gone");
    }
}
