//! Schema 4: what is recorded of each disk's finished file and of its file system, and what is learned about the file
//! later.
//!
//! A record is a postcard struct: its fields one after the other, without names. This migration appends one: a list
//! with an entry for each disk, or empty if nothing was recorded.

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// Snapshot id → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (snapshot id, disk) → ctime of its file, nanoseconds since 1970. For this ctime it was proven that the content is
/// the recorded one.
const PROVEN: TableDefinition<'_, (u128, &str), i128> = TableDefinition::new("proven");
/// (snapshot id, disk, algorithm) → checksum of the whole disk.
const CHECKSUMS: TableDefinition<'_, (u128, &str, &str), &[u8]> = TableDefinition::new("checksums");

/// An empty list.
const NOTHING: &[u8] = b"\x00";

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
