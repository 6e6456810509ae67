//! Schema 4: what each disk's file was like when it was finished, on which file system, and what was found out
//! about it since.
//!
//! A record is a postcard struct: its fields one after the other, without names. One new field is at its end:
//! a list with an entry for each disk, or empty where nothing was recorded.

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// Snapshot id → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (snapshot id, disk) → the change time of its file, nanoseconds since 1970, for which it was proven that the
/// content is the one that was recorded.
const PROVEN: TableDefinition<'_, (u128, &str), i128> = TableDefinition::new("proven");
/// (snapshot id, disk, algorithm) → checksum of the whole disk.
const CHECKSUMS: TableDefinition<'_, (u128, &str, &str), &[u8]> = TableDefinition::new("checksums");

/// An empty list.
const NOTHING: &[u8] = b"\x00";

/// Adds the field to each record, and makes the table.
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
    transaction.open_table(PROVEN)?;
    transaction.open_table(CHECKSUMS)?;
    Ok(())
}
