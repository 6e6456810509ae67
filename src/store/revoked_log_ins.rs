//! The log-ins that are revoked themselves. A ticket of one of them is not added.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::StoreError;

/// Id of the log-in → its user, and when its last token expires, seconds since 1970.
pub(super) const TABLE: TableDefinition<'_, u128, (&str, u64)> = TableDefinition::new("revoked_log_ins");

/// Whether a log-in is revoked itself.
pub(super) fn contains(transaction: &WriteTransaction, id: u128) -> Result<bool, StoreError> {
    Ok(transaction.open_table(TABLE)?.get(id)?.is_some())
}
