//! Schema 7: tickets.

use redb::{Error, TableDefinition, WriteTransaction};

/// SHA-256 of the secret → ticket (postcard).
const TICKETS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tickets");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(TICKETS)?;
    Ok(())
}
