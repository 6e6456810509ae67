//! The identity of a file, from its metadata.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::model::{FileIdentity, SnapshotDisk};

pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    FileIdentity {
        inode: metadata.ino(),
        size: metadata.len(),
        changed_ns: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
    }
}

/// The mtime, nanoseconds since 1970.
pub(super) fn modified(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// Whether only the ctime differs from the record of `disk`.
pub(super) fn is_touched_only(metadata: &Metadata, disk: &SnapshotDisk) -> bool {
    let Some(seal) = disk.seal else { return false };
    let found = FileIdentity { changed_ns: disk.identity.changed_ns, ..identity(metadata) };
    found == disk.identity && modified(metadata) == seal.modified_ns
}
