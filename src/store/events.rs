//! The events that wait for webhooks, and the conditions that were reported.
//!
//! An event is written in the transaction of the change that it is about. So after a crash there are both or none.

use std::collections::{BTreeMap, HashMap};

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{StoreError, database, schema};

/// (webhook, number) → event (JSON). The numbers are those of the counter `event`.
pub(super) const EVENTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("events");
/// Webhook → (events that wait, their bytes, events that were dropped and not reported to it yet). So no queue has to be
/// read to be counted.
pub(super) const QUEUES: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("event_queues");
/// (webhook, condition) → its state, as it was last reported to the webhook. One that is as it should be has no entry.
pub(super) const CONDITIONS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("conditions");

/// The most bytes that wait for one webhook, because the database never gets smaller.
const MAX_QUEUED_BYTES: u64 = 16 << 20;

/// An event, and the webhooks that get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub webhooks: Vec<String>,
    /// JSON.
    pub body: Vec<u8>,
    /// The most events that may wait for one webhook. Of more, the oldest are dropped, except the first one, which may
    /// be under way.
    pub max_queued: u64,
}

/// What waits for a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The number and the body of the next event.
    pub next: Option<(u64, Vec<u8>)>,
    pub queued: u64,
    /// Events that were dropped and not reported yet.
    pub dropped: u64,
}

/// What became of an event that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// It is dropped.
    GivenUp,
    /// It goes behind the others.
    Postponed,
}

/// What is to be recorded about the queue of a webhook.
#[derive(Debug, Default)]
pub struct QueueChanges {
    /// By the number of the event.
    pub outcomes: BTreeMap<u64, Outcome>,
    /// The webhook has learned of so many dropped events.
    pub reported: u64,
    /// Events that could not be written before, the oldest first.
    pub unwritten: Vec<Vec<u8>>,
    /// So many events were dropped before they could be written.
    pub dropped: u64,
}

/// Condition by webhook and name → its state, as it was last reported to the webhook.
pub type ReportedConditions = HashMap<(String, String), String>;

/// The events of a [`Store`](super::Store).
pub struct Events<'a>(pub(super) &'a database::Handle);

impl Events<'_> {
    /// Adds an event about something that is not in the database.
    #[cfg(test)]
    pub fn add(&self, event: &NewEvent) -> Result<(), StoreError> {
        self.0.write(|transaction| enqueue(transaction, Some(event)))
    }

    /// What waits for `webhook`. The next event is the first one that is not in `done`.
    pub fn waiting(&self, webhook: &str, done: &BTreeMap<u64, Outcome>) -> Result<Waiting, StoreError> {
        self.0.read(|transaction| {
            let events = transaction.open_table(EVENTS)?;
            let (queued, _, dropped) =
                transaction.open_table(QUEUES)?.get(webhook)?.map_or_else(Default::default, |queue| queue.value());
            let mut waiting = Waiting { next: None, queued, dropped };
            for entry in events.range((webhook, 0)..=(webhook, u64::MAX))? {
                let (key, body) = entry?;
                let number = key.value().1;
                if !done.contains_key(&number) {
                    waiting.next = Some((number, body.value().to_vec()));
                    break;
                }
            }
            Ok(waiting)
        })
    }

    /// The numbers of the first events of `webhook` that are not in `done`, while `is_meant` of their bodies.
    pub fn first_while(
        &self,
        webhook: &str,
        done: &BTreeMap<u64, Outcome>,
        mut is_meant: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u64>, StoreError> {
        self.0.read(|transaction| {
            let mut numbers = Vec::new();
            for entry in transaction.open_table(EVENTS)?.range((webhook, 0)..=(webhook, u64::MAX))? {
                let (key, body) = entry?;
                let number = key.value().1;
                if done.contains_key(&number) {
                    continue;
                }
                if !is_meant(body.value()) {
                    break;
                }
                numbers.push(number);
            }
            Ok(numbers)
        })
    }

    /// Records what became of the events of `webhook`, and adds those that could not be written before.
    pub fn record(&self, webhook: &str, changes: &QueueChanges, max_queued: u64) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let mut queue = Queue::open(transaction, webhook)?;
            for (number, outcome) in &changes.outcomes {
                // A full queue has dropped it meanwhile.
                let Some(body) = queue.remove(*number)? else { continue };
                match outcome {
                    Outcome::Delivered => {}
                    Outcome::GivenUp => queue.dropped += 1,
                    Outcome::Postponed => queue.push(&body)?,
                }
            }
            queue.dropped = (queue.dropped + changes.dropped).saturating_sub(changes.reported);
            for body in &changes.unwritten {
                queue.push(body)?;
            }
            queue.shorten(max_queued)?;
            queue.close()
        })
    }

    /// Removes what was recorded about webhooks that are not to be kept. Returns the names of those for which events
    /// waited. `is_kept` is called in the transaction: an event was written before it for a webhook that was known then.
    pub fn keep_only(&self, is_kept: impl Fn(&str) -> bool) -> Result<Vec<String>, StoreError> {
        let is_other = |name: &str| !is_kept(name);
        let (others, is_tidy) = self.0.read(|transaction| {
            let mut others = Vec::new();
            for entry in transaction.open_table(QUEUES)?.iter()? {
                others.push(entry?.0.value().to_owned());
            }
            others.retain(|name| is_other(name));
            let mut is_tidy = others.is_empty();
            for entry in transaction.open_table(CONDITIONS)?.iter()? {
                is_tidy &= !is_other(entry?.0.value().0);
            }
            Ok((others, is_tidy))
        })?;
        // The usual case writes nothing.
        if !is_tidy {
            self.0.write(|transaction| {
                transaction.open_table(EVENTS)?.retain(|(name, _), _| !is_other(name))?;
                transaction.open_table(QUEUES)?.retain(|name, _| !is_other(name))?;
                Ok(transaction.open_table(CONDITIONS)?.retain(|(name, _), _| !is_other(name))?)
            })?;
        }
        Ok(others)
    }

    /// The conditions that are not as they should be, with their reported states.
    pub fn conditions(&self) -> Result<ReportedConditions, StoreError> {
        self.0.read(|transaction| {
            let mut found = HashMap::new();
            for entry in transaction.open_table(CONDITIONS)?.iter()? {
                let (key, state) = entry?;
                let (webhook, condition) = key.value();
                found.insert((webhook.to_owned(), condition.to_owned()), state.value().to_owned());
            }
            Ok(found)
        })
    }

    /// Records the state of a condition for some webhooks, `None` if it is as it should be, together with the event that
    /// reports it.
    pub fn set_condition(
        &self,
        webhooks: &[String],
        condition: &str,
        state: Option<&str>,
        event: Option<&NewEvent>,
    ) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let mut conditions = transaction.open_table(CONDITIONS)?;
            for webhook in webhooks {
                let key = (webhook.as_str(), condition);
                match state {
                    Some(state) => drop(conditions.insert(key, state)?),
                    None => drop(conditions.remove(key)?),
                }
            }
            enqueue(transaction, event)
        })
    }
}

/// Adds the event to the queue of each of its webhooks.
pub(super) fn enqueue(transaction: &WriteTransaction, event: Option<&NewEvent>) -> Result<(), StoreError> {
    let Some(NewEvent { webhooks, body, max_queued }) = event else { return Ok(()) };
    for webhook in webhooks {
        let mut queue = Queue::open(transaction, webhook)?;
        queue.push(body)?;
        queue.shorten(*max_queued)?;
        queue.close()?;
    }
    Ok(())
}

/// The queue of a webhook in a transaction, with its numbers.
struct Queue<'a> {
    transaction: &'a WriteTransaction,
    webhook: &'a str,
    queued: u64,
    bytes: u64,
    dropped: u64,
}

impl<'a> Queue<'a> {
    fn open(transaction: &'a WriteTransaction, webhook: &'a str) -> Result<Self, StoreError> {
        let numbers = transaction.open_table(QUEUES)?.get(webhook)?.map(|queue| queue.value());
        let (queued, bytes, dropped) = numbers.unwrap_or_default();
        Ok(Self { transaction, webhook, queued, bytes, dropped })
    }

    fn push(&mut self, body: &[u8]) -> Result<(), StoreError> {
        let mut counters = self.transaction.open_table(schema::COUNTERS)?;
        let number = counters.get("event")?.map_or(0, |value| value.value()) + 1;
        counters.insert("event", number)?;
        self.transaction.open_table(EVENTS)?.insert((self.webhook, number), body)?;
        self.queued += 1;
        self.bytes += body.len() as u64;
        Ok(())
    }

    fn remove(&mut self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let mut events = self.transaction.open_table(EVENTS)?;
        let body = events.remove((self.webhook, number))?.map(|body| body.value().to_vec());
        if let Some(body) = &body {
            self.queued = self.queued.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(body.len() as u64);
        }
        Ok(body)
    }

    /// Drops the oldest events, except the first one, which may be under way.
    fn shorten(&mut self, max_queued: u64) -> Result<(), StoreError> {
        while self.queued > max_queued.max(1) || (self.queued > 1 && self.bytes > MAX_QUEUED_BYTES) {
            let events = self.transaction.open_table(EVENTS)?;
            let mut range = events.range((self.webhook, 0)..=(self.webhook, u64::MAX))?;
            let second = range.nth(1).transpose()?.map(|(key, _)| key.value().1);
            drop(range);
            drop(events);
            let Some(number) = second else { break };
            self.remove(number)?;
            self.dropped += 1;
        }
        Ok(())
    }

    fn close(self) -> Result<(), StoreError> {
        let mut queues = self.transaction.open_table(QUEUES)?;
        if (self.queued, self.dropped) == (0, 0) {
            queues.remove(self.webhook)?;
        } else {
            queues.insert(self.webhook, (self.queued, self.bytes, self.dropped))?;
        }
        Ok(())
    }
}

/// Removes all events. A copy of the database has none: until it is used, its original has delivered them.
pub(super) fn forget_all(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(EVENTS)?.retain(|_, _| false)?;
    Ok(transaction.open_table(QUEUES)?.retain(|_, _| false)?)
}

#[cfg(test)]
mod tests;
