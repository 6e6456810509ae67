//! A disk of a snapshot, open for reading.

use std::sync::Arc;

use crate::app::retention::InUse;
use crate::model::{Annotations, FileIdentity, SnapshotDisk, SnapshotId, VmId};
use crate::repository::DiskFile;

/// A disk of a snapshot, open for reading.
pub struct OpenDisk {
    /// The VM and the snapshot.
    pub snapshot: (VmId, SnapshotId),
    /// Those of the snapshot.
    pub annotations: Annotations,
    /// The file, proven to be unchanged.
    pub file: Arc<DiskFile>,
    /// The recorded disk.
    pub disk: SnapshotDisk,
    /// A string that is unique to this content.
    pub version: String,
    pub taken_at: jiff::Timestamp,
    /// Keeps the snapshot from being swept.
    pub in_use: Arc<InUse>,
}

/// A string that is unique to the content of a disk. It includes the disk's name, because files in two repositories can
/// have the same inode number and change time.
pub(super) fn version(id: SnapshotId, disk: &SnapshotDisk) -> String {
    let FileIdentity { inode, size, changed_ns } = disk.identity;
    format!("{id}-{}-{inode:x}-{changed_ns:x}-{size:x}", disk.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskSource;

    #[test]
    fn disks_with_equal_inode_numbers_have_different_versions() {
        let identity = FileIdentity { inode: 131, size: 1 << 30, changed_ns: 1_714_558_830_123_456_789 };
        let disk = |name: &str, repository: &str| SnapshotDisk {
            name: name.parse().unwrap(),
            source: DiskSource { repository: repository.parse().unwrap(), path: "VirtualDisks/a.img".to_owned() },
            identity,
            volume: None,
            seal: None,
        };
        let id = SnapshotId::from_u128(7);
        let versions = [disk("a.img", "r1"), disk("r2-a.img", "r2")].map(|disk| version(id, &disk));
        assert_ne!(versions[0], versions[1]);
        assert_ne!(version(SnapshotId::from_u128(8), &disk("a.img", "r1")), versions[0]);
    }
}
