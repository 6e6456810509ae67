//! The database's schema, and the migration from older ones.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::StoreError;

#[path = "../../migrations/0001_initial.rs"]
mod m0001_initial;
#[path = "../../migrations/0002_hooks.rs"]
mod m0002_hooks;
#[path = "../../migrations/0003_policy.rs"]
mod m0003_policy;
#[path = "../../migrations/0004_seals.rs"]
mod m0004_seals;
#[path = "../../migrations/0005_annotations.rs"]
mod m0005_annotations;
#[path = "../../migrations/0006_definitions.rs"]
mod m0006_definitions;
#[path = "../../migrations/0007_tickets.rs"]
mod m0007_tickets;
#[path = "../../migrations/0008_sessions.rs"]
mod m0008_sessions;
#[path = "../../migrations/0009_notifications.rs"]
mod m0009_notifications;
#[path = "../../migrations/0010_pool.rs"]
mod m0010_pool;

type Migration = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// Migration `i` leads from schema `i` to schema `i + 1`.
const MIGRATIONS: &[Migration] = &[
    m0001_initial::run,
    m0002_hooks::run,
    m0003_policy::run,
    m0004_seals::run,
    m0005_annotations::run,
    m0006_definitions::run,
    m0007_tickets::run,
    m0008_sessions::run,
    m0009_notifications::run,
    m0010_pool::run,
];

pub(super) const CURRENT_SCHEMA: u64 = MIGRATIONS.len() as u64;

/// Name → number. `schema` is the schema's number; `sequence` is the last one assigned to a snapshot,
/// `event` the last number of an event.
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Migrates the database to the current schema in `transaction`.
///
/// # Errors
/// [`StoreError::NewerSchema`] if a newer program made it.
pub(super) fn migrate(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let found = found(&transaction.open_table(COUNTERS)?)?;
    for migration in &MIGRATIONS[usize::try_from(found).unwrap_or(MIGRATIONS.len())..] {
        migration(transaction)?;
    }
    if found < CURRENT_SCHEMA {
        transaction.open_table(COUNTERS)?.insert("schema", CURRENT_SCHEMA)?;
        tracing::info!(from = found, to = CURRENT_SCHEMA, "migrated the database schema");
    }
    Ok(())
}

/// The database's schema, which may be an older one.
///
/// # Errors
/// Those of [`migrate`].
pub(super) fn of(transaction: &ReadTransaction) -> Result<u64, StoreError> {
    match transaction.open_table(COUNTERS) {
        // Created and never used.
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
        table => found(&table?),
    }
}

/// The database's schema; 0 if it has none yet.
fn found(counters: &impl ReadableTable<&'static str, u64>) -> Result<u64, StoreError> {
    let found = counters.get("schema")?.map_or(0, |value| value.value());
    if found > CURRENT_SCHEMA { Err(StoreError::NewerSchema { found, supported: CURRENT_SCHEMA }) } else { Ok(found) }
}
