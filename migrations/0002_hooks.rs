//! Schema 2: what ran around a snapshot, and what hooks are owed.
//!
//! A record is a postcard struct: its fields one after the other, without names. Three new ones
//! stand at its end: the consistency (text), the freeze (optional number), the runs (list).

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// Snapshot id → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// Snapshot id → the operation (JSON) whose `post` hooks have not run yet.
const OWED_HOOKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("owed_hooks");

/// `"crash"`, none, an empty list: what snapshots were before there were hooks.
const NO_HOOKS: &[u8] = b"\x05crash\x00\x00";

/// Adds the fields to each record, and makes the table.
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
