//! Schema 1: the first.
//!
//! A migration is one function on a write transaction. It imports nothing from the program, so a later change of the
//! program cannot change it.

use redb::{Error, TableDefinition, WriteTransaction};

/// Name → number. `schema` is set by the code that runs the migrations; `sequence` is the last one assigned to a
/// snapshot.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Snapshot id (the UUID as a number) → record (postcard).
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (VM, sequence) → snapshot id.
const SNAPSHOTS_BY_VM: TableDefinition<'_, (&str, u64), u128> = TableDefinition::new("snapshots_by_vm");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(COUNTERS)?.insert("sequence", 0)?;
    transaction.open_table(SNAPSHOTS)?;
    transaction.open_table(SNAPSHOTS_BY_VM)?;
    Ok(())
}
