//! Schema 6: the definitions of VMs as they were at their snapshots.

use redb::{Error, TableDefinition, WriteTransaction};

/// Snapshot id → definition (JSON).
const DEFINITIONS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("definitions");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(DEFINITIONS)?;
    Ok(())
}
