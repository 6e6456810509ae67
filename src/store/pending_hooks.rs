//! The operations whose pre hooks may have run and whose post hooks have not: after a crash the next start calls them.

use redb::{ReadableTable, TableDefinition};

use super::{NewEvent, StoreError, database, events};
use crate::model::PendingHooksKey;

/// Key → the operation (JSON) whose post hooks have not run yet.
pub(super) const TABLE: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("owed_hooks");

/// The pending post hooks of a [`Store`](super::Store).
pub struct PendingHookTable<'a>(pub(super) &'a database::Handle);

impl PendingHookTable<'_> {
    /// Records that the hooks of an operation are about to be called. If the service stops before the post hooks have
    /// run, `operation` is what the next start needs to call them. The `events` are written in the same transaction.
    pub fn record(
        &self,
        key: PendingHooksKey,
        operation: &[u8],
        events: &[Option<NewEvent>],
    ) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(TABLE)?.insert(key.as_u128(), operation)?;
            events.iter().try_for_each(|event| events::enqueue(transaction, event.as_ref()))
        })
    }

    /// Records that the post hooks have run, or are not called any more. The `events` are written in the same
    /// transaction.
    pub fn clear(&self, key: PendingHooksKey, events: &[Option<NewEvent>]) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(TABLE)?.remove(key.as_u128())?;
            events.iter().try_for_each(|event| events::enqueue(transaction, event.as_ref()))
        })
    }

    /// The operations whose post hooks have not run.
    pub fn all(&self) -> Result<Vec<(PendingHooksKey, Vec<u8>)>, StoreError> {
        self.0.read(|transaction| {
            let mut pending = Vec::new();
            for entry in transaction.open_table(TABLE)?.iter()? {
                let (key, operation) = entry?;
                pending.push((PendingHooksKey::from_u128(key.value()), operation.value().to_vec()));
            }
            Ok(pending)
        })
    }
}
