//! What was learned about snapshots' files after they were finished.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{SNAPSHOTS, StoreError, database};
use crate::model::{DiskName, SnapshotId};

/// (snapshot id, disk) → ctime of its file, nanoseconds since 1970. For this ctime it was proven that the content is
/// the recorded one.
pub(super) const PROVEN: TableDefinition<'_, (u128, &str), i128> = TableDefinition::new("proven");
/// (snapshot id, disk, algorithm) → checksum of the whole disk.
pub(super) const CHECKSUMS: TableDefinition<'_, (u128, &str, &str), &[u8]> = TableDefinition::new("checksums");

/// The proofs and checksums of a [`Store`](super::Store).
pub struct Proofs<'a>(pub(super) &'a database::Handle);

impl Proofs<'_> {
    /// The ctime for which a disk's content was last proven.
    pub fn proven_change(&self, id: SnapshotId, disk: &DiskName) -> Result<Option<i128>, StoreError> {
        self.0.read(|transaction| {
            let proven = transaction.open_table(PROVEN)?.get((id.as_u128(), disk.as_str()))?;
            Ok(proven.map(|changed_ns| changed_ns.value()))
        })
    }

    /// Records that a disk's content was proven while its file had this ctime.
    pub fn record(&self, id: SnapshotId, disk: &DiskName, changed_ns: i128) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            if transaction.open_table(SNAPSHOTS)?.get(id.as_u128())?.is_some() {
                transaction.open_table(PROVEN)?.insert((id.as_u128(), disk.as_str()), changed_ns)?;
            }
            Ok(())
        })
    }

    /// The recorded checksums of a disk, each with its algorithm.
    pub fn checksums(&self, id: SnapshotId, disk: &DiskName) -> Result<Vec<(String, [u8; 32])>, StoreError> {
        self.0.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(CHECKSUMS)?.range((id.as_u128(), disk.as_str(), "")..)? {
                let (key, digest) = entry?;
                let (of, name, algorithm) = key.value();
                if (of, name) != (id.as_u128(), disk.as_str()) {
                    break;
                }
                found.extend(digest.value().try_into().ok().map(|digest| (algorithm.to_owned(), digest)));
            }
            Ok(found)
        })
    }

    /// Records the checksum of a whole disk.
    pub fn record_checksum(
        &self,
        id: SnapshotId,
        disk: &DiskName,
        algorithm: &str,
        digest: &[u8; 32],
    ) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            if transaction.open_table(SNAPSHOTS)?.get(id.as_u128())?.is_some() {
                let key = (id.as_u128(), disk.as_str(), algorithm);
                transaction.open_table(CHECKSUMS)?.insert(key, digest.as_slice())?;
            }
            Ok(())
        })
    }
}

pub(super) fn forget(transaction: &WriteTransaction, id: SnapshotId) -> Result<(), StoreError> {
    let id = id.as_u128();
    if let Some(next) = id.checked_add(1) {
        transaction.open_table(PROVEN)?.retain_in((id, "")..(next, ""), |_, _| false)?;
        transaction.open_table(CHECKSUMS)?.retain_in((id, "", "")..(next, "", ""), |_, _| false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::tests::{begin, snapshot};
    use super::*;
    use crate::model::Described;
    use crate::model::SnapshotFiles;

    #[test]
    fn proofs_and_checksums_are_removed_with_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let [first, second] = [1, 2].map(|number| begin(&store, snapshot(number), None));
        for snapshot in [&first, &second] {
            store.commit(&[(Described::alone(snapshot.clone()), None)]).unwrap();
        }
        let disk = first.disks[0].name.clone();
        for id in [first.id, second.id, SnapshotId::from_u128(3)] {
            store.proofs().record(id, &disk, 77).unwrap();
            store.proofs().record_checksum(id, &disk, "sha256", &[7; 32]).unwrap();
        }
        let found =
            |id| (store.proofs().proven_change(id, &disk).unwrap(), store.proofs().checksums(id, &disk).unwrap());
        let all = (Some(77), vec![("sha256".to_owned(), [7; 32])]);
        assert_eq!((found(first.id), found(second.id)), (all.clone(), all.clone()));
        assert_eq!(found(SnapshotId::from_u128(3)), (None, vec![]), "there is no such snapshot");
        store.forget(&SnapshotFiles::from(&first), None).unwrap();
        assert_eq!((found(first.id), found(second.id)), ((None, vec![]), all));
    }

    #[test]
    fn forgetting_a_foreign_snapshot_keeps_ours_with_the_same_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let ours = begin(&store, snapshot(1), None);
        store.commit(&[(Described::alone(ours.clone()), None)]).unwrap();
        // The other service assigns its own sequences.
        let mut theirs = snapshot(2);
        theirs.sequence = ours.sequence;
        store.begin_deletion(&theirs, None).unwrap();
        store.forget(&SnapshotFiles::from(&theirs), None).unwrap();
        assert_eq!(store.snapshots_of(&ours.vm).unwrap(), [ours]);
    }
}
