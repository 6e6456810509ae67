//! Schema 9: events for webhooks.

use redb::{Error, TableDefinition, WriteTransaction};

/// (webhook, number) → event (JSON).
const EVENTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("events");
/// Webhook → events that were dropped and not reported yet.
const DROPPED: TableDefinition<'_, &str, u64> = TableDefinition::new("dropped_events");
/// Condition → its state, as it was last reported.
const CONDITIONS: TableDefinition<'_, &str, &str> = TableDefinition::new("conditions");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(EVENTS)?;
    transaction.open_table(DROPPED)?;
    transaction.open_table(CONDITIONS)?;
    Ok(())
}
