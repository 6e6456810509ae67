//! Schema 5: labels and descriptions of snapshots.
//!
//! A record is a postcard struct: its fields one after the other, without names. This migration appends two: the
//! labels (a map of texts) and the description (optional text).

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// Snapshot id → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");

/// An empty map, and none.
const NOTHING: &[u8] = b"\x00\x00";

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    let mut snapshots = transaction.open_table(SNAPSHOTS)?;
    let mut records = Vec::new();
    for entry in snapshots.iter()? {
        let (id, record) = entry?;
        records.push((id.value(), [record.value(), NOTHING].concat()));
    }
    for (id, record) in records {
        snapshots.insert(id, record.as_slice())?;
    }
    Ok(())
}
