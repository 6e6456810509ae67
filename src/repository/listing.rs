//! The list of a repository's snapshot folders, and whether it has changed since it was read.
//!
//! The folder of all snapshots changes its modification time when an entry comes or goes. Exporters also set it when
//! they have finished a snapshot. So one fstat(2) tells whether another exporter has done something.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::SNAPSHOTS;
use crate::model::SnapshotId;
use crate::sys::folder::Folder;

/// The state of a folder. It differs after each change of its entries. The clock of the host that made the change does not matter: it is compared for equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// The snapshot folders at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// `None`: the folder of all snapshots does not exist.
    pub version: Option<Version>,
    pub ids: BTreeSet<SnapshotId>,
}

/// Lists the snapshot folders of the repository `root`. Returns nothing if `known` is the current version.
///
/// Two changes within one tick of the kernel's clock give one version. So a caller must go on listing for some time after
/// it has seen a new one.
///
/// # Errors
/// [`UnexpectedEntry`](crate::sys::folder::UnexpectedEntry) if the folder of all snapshots is a link or not a folder;
/// those of reading it.
pub fn read(root: &Folder, known: Option<Option<Version>>) -> io::Result<Option<Listing>> {
    let snapshots = match root.folder(SNAPSHOTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        snapshots => Some(snapshots?),
    };
    // The version first: what comes afterwards changes it again.
    let version = snapshots.as_ref().map(Version::of).transpose()?;
    if known == Some(version) {
        return Ok(None);
    }
    let names = snapshots.map_or(Ok(Vec::new()), |snapshots| snapshots.entries())?;
    let ids = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    Ok(Some(Listing { version, ids }))
}

/// The ids of the snapshots that have folders.
///
/// # Errors
/// As [`read`].
pub fn ids(root: &Folder) -> io::Result<BTreeSet<SnapshotId>> {
    Ok(read(root, None)?.unwrap_or_default().ids)
}

impl Version {
    pub(super) fn of(folder: &Folder) -> io::Result<Self> {
        let metadata = folder.metadata()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), modified })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

    #[test]
    fn list_is_read_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let missing = read(&root, None).unwrap().unwrap();
        assert_eq!(missing, Listing::default());
        assert_eq!(read(&root, Some(missing.version)).unwrap(), None);

        let snapshots = dir.path().join(SNAPSHOTS);
        fs::create_dir_all(snapshots.join(ID)).unwrap();
        fs::create_dir(snapshots.join(".pool")).unwrap();
        let first = read(&root, Some(missing.version)).unwrap().unwrap();
        assert_eq!(first.ids, BTreeSet::from([ID.parse().unwrap()]));
        assert_eq!(read(&root, Some(first.version)).unwrap(), None);

        // As after a finished snapshot.
        root.folder(SNAPSHOTS).unwrap().touch().unwrap();
        let touched = read(&root, Some(first.version)).unwrap().unwrap();
        assert_eq!(touched.ids, first.ids);
        fs::remove_dir(snapshots.join(ID)).unwrap();
        let removed = read(&root, Some(touched.version)).unwrap().unwrap();
        assert_eq!(removed.ids, BTreeSet::new());
    }
}
