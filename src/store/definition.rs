//! The definitions of VMs as they were at their snapshots. They have a table of their own, because records are read far
//! more often.

use redb::{TableDefinition, WriteTransaction};

use super::{Store, StoreError};
use crate::model::{Definition, SnapshotId};

/// Snapshot id → definition (JSON).
pub(super) const DEFINITIONS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("definitions");

impl Store {
    /// The definition of the VM of the snapshot `id`, as it was at the snapshot, if it was kept.
    pub fn definition(&self, id: SnapshotId) -> Result<Option<Definition>, StoreError> {
        self.handle.read(|transaction| {
            let definitions = transaction.open_table(DEFINITIONS)?;
            let bytes = definitions.get(id.as_u128())?;
            bytes.map(|bytes| decode(id.as_u128(), bytes.value())).transpose()
        })
    }
}

pub(super) fn put(
    transaction: &WriteTransaction,
    id: SnapshotId,
    definition: Option<&Definition>,
) -> Result<(), StoreError> {
    let Some(definition) = definition else { return Ok(()) };
    let bytes = serde_json::to_vec(definition).map_err(|error| damaged(id, &error))?;
    transaction.open_table(DEFINITIONS)?.insert(id.as_u128(), bytes.as_slice())?;
    Ok(())
}

pub(super) fn forget(transaction: &WriteTransaction, id: SnapshotId) -> Result<(), StoreError> {
    transaction.open_table(DEFINITIONS)?.remove(id.as_u128())?;
    Ok(())
}

pub(super) fn decode(id: u128, bytes: &[u8]) -> Result<Definition, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(SnapshotId::from_u128(id), &error))
}

fn damaged(id: SnapshotId, error: &serde_json::Error) -> StoreError {
    StoreError::Record { id, cause: format!("the VM's definition: {error}") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{begin, snapshot};
    use super::*;
    use crate::model::SnapshotFiles;
    use crate::model::{Described, Snapshot};

    #[test]
    fn definition_is_kept_as_long_as_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let [made, plain] = [1, 2].map(|number| begin(&store, snapshot(number), None));
        let definition = Definition { format: "vm.cfg".to_owned(), memory_mb: Some(1), ..Definition::default() };
        let defined =
            |snapshot: Snapshot| Described { definition: Some(definition.clone()), ..Described::alone(snapshot) };
        store.commit(&[(defined(made.clone()), None)]).unwrap();
        store.commit(&[(Described::alone(plain.clone()), None)]).unwrap();
        assert!(store.adopt(&defined(snapshot(3))).unwrap());
        let found = |number| store.definition(SnapshotId::from_u128(number)).unwrap();
        assert_eq!([1, 2, 3, 4].map(found), [Some(definition.clone()), None, Some(definition.clone()), None]);
        store.forget(&SnapshotFiles::from(&made), None).unwrap();
        assert_eq!([1, 3].map(found), [None, Some(definition)]);
    }
}
