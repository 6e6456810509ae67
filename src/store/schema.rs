//! The database's schema, and the way from an older one to today's.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::StoreError;

#[path = "../../migrations/0001_initial.rs"]
mod m0001_initial;

type Migration = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// Migration `i` makes schema `i + 1` of schema `i`.
const MIGRATIONS: &[Migration] = &[m0001_initial::run];

/// Name → number: `schema`, and `sequence`, the last one given to a snapshot.
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Brings the database to today's schema inside `transaction`.
///
/// # Errors
/// [`StoreError::NewerSchema`] where a newer program made it; those of the database.
pub(super) fn migrate(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let today = MIGRATIONS.len() as u64;
    let found = transaction.open_table(COUNTERS)?.get("schema")?.map_or(0, |value| value.value());
    if found > today {
        return Err(StoreError::NewerSchema { found, today });
    }
    for migration in &MIGRATIONS[usize::try_from(found).unwrap_or(MIGRATIONS.len())..] {
        migration(transaction)?;
    }
    if found < today {
        transaction.open_table(COUNTERS)?.insert("schema", today)?;
        tracing::info!(from = found, to = today, "database schema brought up to date");
    }
    Ok(())
}
