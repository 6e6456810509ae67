//! Schema 9: events for webhooks.

use redb::{Error, TableDefinition, WriteTransaction};

/// (webhook, number) → event (JSON).
const EVENTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("events");
/// Webhook → (events that wait, their bytes, events that were dropped and not reported yet).
const QUEUES: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("event_queues");
/// (webhook, condition) → its state, as it was last reported to the webhook.
const CONDITIONS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("conditions");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(EVENTS)?;
    transaction.open_table(QUEUES)?;
    transaction.open_table(CONDITIONS)?;
    Ok(())
}
