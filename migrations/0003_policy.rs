//! How long snapshots are kept, who still needs them, and which request made them.
//!
//! A migration is one function over a write transaction. It imports nothing from the program, so
//! that history cannot change under it.

use redb::{Error, TableDefinition, WriteTransaction};

/// Snapshot id → when it expires, milliseconds since 1970. None: it does not.
const EXPIRIES: TableDefinition<'_, u128, i64> = TableDefinition::new("expiries");
/// (snapshot id, user) → until when that user needs it, milliseconds since 1970.
const LEASES: TableDefinition<'_, (u128, &str), i64> = TableDefinition::new("leases");
/// (user, VM, Idempotency-Key) → what it made (postcard).
const IDEMPOTENCY_KEYS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("idempotency_keys");

/// Makes the tables.
pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(EXPIRIES)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(IDEMPOTENCY_KEYS)?;
    Ok(())
}
