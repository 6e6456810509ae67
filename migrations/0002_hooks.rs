//! Schema 2: the hooks around a snapshot, and the post hooks that are pending.
//!
//! A record is a postcard struct: its fields one after the other, without names. This migration appends three: the
//! consistency (text), the freeze (optional number), and the hook runs (list).

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// Snapshot id → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// Snapshot id → the operation (JSON) whose post hooks have not run yet.
const OWED_HOOKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("owed_hooks");

/// `"crash"`, none, an empty list: the values of snapshots from before there were hooks.
const NO_HOOKS: &[u8] = b"\x05crash\x00\x00";

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    let mut snapshots = transaction.open_table(SNAPSHOTS)?;
    let mut records = Vec::new();
    for entry in snapshots.iter()? {
        let (id, record) = entry?;
        records.push((id.value(), [record.value(), NO_HOOKS].concat()));
    }
    for (id, record) in records {
        snapshots.insert(id, record.as_slice())?;
    }
    transaction.open_table(OWED_HOOKS)?;
    Ok(())
}
