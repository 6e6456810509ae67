//! Schema 3: how long snapshots are kept, who needs them, and which requests made them.
//!
//! A migration is one function on a write transaction. It imports nothing from the program, so a later change of the
//! program cannot change it.

use redb::{Error, TableDefinition, WriteTransaction};

/// Snapshot id → expiry, milliseconds since 1970. A snapshot without an entry does not expire.
const EXPIRIES: TableDefinition<'_, u128, i64> = TableDefinition::new("expiries");
/// (snapshot id, user) → end of the lease, milliseconds since 1970.
const LEASES: TableDefinition<'_, (u128, &str), i64> = TableDefinition::new("leases");
/// (user, VM, Idempotency-Key) → the request's digest and the snapshot that it made (postcard).
const IDEMPOTENCY_KEYS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("idempotency_keys");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(EXPIRIES)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(IDEMPOTENCY_KEYS)?;
    Ok(())
}
