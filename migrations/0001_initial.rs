//! Schema 1: the first.
//!
//! A migration is one function over a write transaction. It imports nothing from the program, so
//! that history cannot change under it.

use redb::{Error, TableDefinition, WriteTransaction};

/// Name → number. `schema` is kept by the runner, `sequence` is the last one given to a snapshot.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Snapshot id (the UUID as a number) → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (VM, sequence) → snapshot id.
const SNAPSHOTS_BY_VM: TableDefinition<'_, (&str, u64), u128> = TableDefinition::new("snapshots_by_vm");

/// Makes the tables.
pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(COUNTERS)?.insert("sequence", 0)?;
    transaction.open_table(SNAPSHOTS)?;
    transaction.open_table(SNAPSHOTS_BY_VM)?;
    Ok(())
}
