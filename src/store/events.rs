//! The events that wait for webhooks, and the conditions that were reported.
//!
//! An event is written in the transaction of the change that it is about. So after a crash there are both or none.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::{StoreError, database, schema};

/// (webhook, number) → event (JSON). The numbers are those of the counter `event`.
pub(super) const EVENTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("events");
/// Webhook → events that were dropped and not reported to it yet.
pub(super) const DROPPED: TableDefinition<'_, &str, u64> = TableDefinition::new("dropped_events");
/// Condition → its state, as it was last reported. One that is as it should be has no entry.
pub(super) const CONDITIONS: TableDefinition<'_, &str, &str> = TableDefinition::new("conditions");

/// An event, and the webhooks that get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub webhooks: Vec<String>,
    /// JSON.
    pub body: Vec<u8>,
    /// The most events that may wait for one webhook. Of more, the oldest are dropped.
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

/// The events of a [`Store`](super::Store).
pub struct Events<'a>(pub(super) &'a database::Handle);

impl Events<'_> {
    /// Adds an event about something that is not in the database.
    pub fn add(&self, event: &NewEvent) -> Result<(), StoreError> {
        self.0.write(|transaction| enqueue(transaction, Some(event)))
    }

    /// What waits for `webhook`.
    pub fn waiting(&self, webhook: &str) -> Result<Waiting, StoreError> {
        self.0.read(|transaction| {
            let events = transaction.open_table(EVENTS)?;
            let mut waiting = Waiting::default();
            for entry in events.range((webhook, 0)..=(webhook, u64::MAX))? {
                let (key, body) = entry?;
                waiting.queued += 1;
                waiting.next.get_or_insert_with(|| (key.value().1, body.value().to_vec()));
            }
            let dropped = transaction.open_table(DROPPED)?.get(webhook)?;
            waiting.dropped = dropped.map_or(0, |count| count.value());
            Ok(waiting)
        })
    }

    /// Removes an event that `webhook` has got. It also learned that `reported` events were dropped before.
    pub fn delivered(&self, webhook: &str, number: u64, reported: u64) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(EVENTS)?.remove((webhook, number))?;
            if reported > 0 {
                let mut dropped = transaction.open_table(DROPPED)?;
                let left = dropped.get(webhook)?.map_or(0, |count| count.value()).saturating_sub(reported);
                if left == 0 {
                    dropped.remove(webhook)?
                } else {
                    dropped.insert(webhook, left)?
                };
            }
            Ok(())
        })
    }

    /// Puts an event behind the others of `webhook`.
    pub fn postpone(&self, webhook: &str, number: u64) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let mut events = transaction.open_table(EVENTS)?;
            let body = events.remove((webhook, number))?.map(|body| body.value().to_vec());
            if let Some(body) = body {
                events.insert((webhook, next_number(transaction)?), body.as_slice())?;
            }
            Ok(())
        })
    }

    /// Drops an event of `webhook`.
    pub fn give_up(&self, webhook: &str, number: u64) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let is_there = transaction.open_table(EVENTS)?.remove((webhook, number))?.is_some();
            if is_there { count_dropped(transaction, webhook, 1) } else { Ok(()) }
        })
    }

    /// Removes the events of all other webhooks. Returns the names of those that had some.
    pub fn keep_only(&self, webhooks: &[&str]) -> Result<Vec<String>, StoreError> {
        let mut others = self.0.read(|transaction| {
            let mut others = Vec::new();
            for entry in transaction.open_table(EVENTS)?.iter()? {
                let (key, _) = entry?;
                others.push(key.value().0.to_owned());
            }
            for entry in transaction.open_table(DROPPED)?.iter()? {
                others.push(entry?.0.value().to_owned());
            }
            Ok(others)
        })?;
        others.retain(|name| !webhooks.contains(&name.as_str()));
        others.sort();
        others.dedup();
        // The usual case writes nothing.
        if !others.is_empty() {
            self.0.write(|transaction| {
                transaction.open_table(EVENTS)?.retain(|(name, _), _| webhooks.contains(&name))?;
                Ok(transaction.open_table(DROPPED)?.retain(|name, _| webhooks.contains(&name))?)
            })?;
        }
        Ok(others)
    }

    /// The conditions that are not as they should be, with their reported states.
    pub fn conditions(&self) -> Result<HashMap<String, String>, StoreError> {
        self.0.read(|transaction| {
            let mut found = HashMap::new();
            for entry in transaction.open_table(CONDITIONS)?.iter()? {
                let (condition, state) = entry?;
                found.insert(condition.value().to_owned(), state.value().to_owned());
            }
            Ok(found)
        })
    }

    /// Records the state of a condition, `None` if it is as it should be, together with the event that reports it.
    pub fn set_condition(
        &self,
        condition: &str,
        state: Option<&str>,
        event: Option<&NewEvent>,
    ) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let mut conditions = transaction.open_table(CONDITIONS)?;
            match state {
                Some(state) => drop(conditions.insert(condition, state)?),
                None => drop(conditions.remove(condition)?),
            }
            enqueue(transaction, event)
        })
    }
}

/// Adds the event to the queue of each of its webhooks.
pub(super) fn enqueue(transaction: &WriteTransaction, event: Option<&NewEvent>) -> Result<(), StoreError> {
    let Some(NewEvent { webhooks, body, max_queued }) = event else { return Ok(()) };
    for webhook in webhooks {
        let number = next_number(transaction)?;
        let mut events = transaction.open_table(EVENTS)?;
        events.insert((webhook.as_str(), number), body.as_slice())?;
        // Counting one queue reads all of it.
        if events.len()? <= *max_queued {
            continue;
        }
        let mut numbers = Vec::new();
        for entry in events.range((webhook.as_str(), 0)..=(webhook.as_str(), u64::MAX))? {
            numbers.push(entry?.0.value().1);
        }
        let excess = numbers.len().saturating_sub(usize::try_from(*max_queued).unwrap_or(usize::MAX));
        for number in &numbers[..excess] {
            events.remove((webhook.as_str(), *number))?;
        }
        drop(events);
        if excess > 0 {
            count_dropped(transaction, webhook, excess as u64)?;
        }
    }
    Ok(())
}

fn next_number(transaction: &WriteTransaction) -> Result<u64, StoreError> {
    let mut counters = transaction.open_table(schema::COUNTERS)?;
    let next = counters.get("event")?.map_or(0, |value| value.value()) + 1;
    counters.insert("event", next)?;
    Ok(next)
}

fn count_dropped(transaction: &WriteTransaction, webhook: &str, count: u64) -> Result<(), StoreError> {
    let mut dropped = transaction.open_table(DROPPED)?;
    let before = dropped.get(webhook)?.map_or(0, |count| count.value());
    dropped.insert(webhook, before + count)?;
    Ok(())
}

/// Removes all events. A copy of the database has none: until it is used, its original has delivered them.
pub(super) fn forget_all(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(EVENTS)?.retain(|_, _| false)?;
    Ok(transaction.open_table(DROPPED)?.retain(|_, _| false)?)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::tests::{begin, snapshot};
    use super::super::{CommitOptions, Store};
    use super::*;

    fn event(webhooks: &[&str], body: &str) -> NewEvent {
        let webhooks = webhooks.iter().copied().map(str::to_owned).collect();
        NewEvent { webhooks, body: body.as_bytes().to_vec(), max_queued: 3 }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("x.db")).unwrap();
        (dir, store)
    }

    /// The bodies that wait for a webhook, and how many were dropped. They are removed.
    fn take(store: &Store, webhook: &str) -> (Vec<String>, u64) {
        let (mut bodies, dropped) = (Vec::new(), store.events().waiting(webhook).unwrap().dropped);
        while let Some((number, body)) = store.events().waiting(webhook).unwrap().next {
            bodies.push(String::from_utf8(body).unwrap());
            store.events().delivered(webhook, number, 0).unwrap();
        }
        (bodies, dropped)
    }

    #[test]
    fn events_wait_in_order_for_each_webhook() {
        let (_dir, store) = store();
        let events = store.events();
        for body in ["1", "2"] {
            events.add(&event(&["a", "b"], body)).unwrap();
        }
        events.add(&event(&["a"], "3")).unwrap();
        let first = events.waiting("a").unwrap();
        assert_eq!((first.queued, first.dropped), (3, 0));
        events.postpone("a", first.next.unwrap().0).unwrap();
        // An event that is gone meanwhile.
        events.postpone("a", 99).unwrap();
        events.give_up("a", 99).unwrap();
        assert_eq!(take(&store, "a"), (vec!["2".to_owned(), "3".to_owned(), "1".to_owned()], 0));
        assert_eq!(events.waiting("b").unwrap().queued, 2);
        // Not a start of the name of another one.
        assert_eq!(events.waiting("").unwrap(), Waiting::default());
        assert_eq!(events.keep_only(&["a"]).unwrap(), ["b"]);
        assert_eq!(events.keep_only(&["a"]).unwrap(), Vec::<String>::new());
        assert_eq!(events.waiting("b").unwrap(), Waiting::default());
    }

    #[test]
    fn oldest_events_of_a_full_queue_are_dropped_and_counted() {
        let (_dir, store) = store();
        let events = store.events();
        for body in ["1", "2", "3", "4", "5"] {
            events.add(&event(&["a"], body)).unwrap();
        }
        events.add(&event(&["b"], "6")).unwrap();
        let waiting = events.waiting("a").unwrap();
        let (number, body) = waiting.next.unwrap();
        assert_eq!((waiting.queued, waiting.dropped, body.as_slice()), (3, 2, b"3".as_slice()));
        events.give_up("a", number).unwrap();
        assert_eq!(events.waiting("a").unwrap().dropped, 3);
        // Meanwhile another one is dropped, which is reported next time.
        let (number, _) = events.waiting("a").unwrap().next.unwrap();
        events.delivered("a", number, 2).unwrap();
        assert_eq!(take(&store, "a"), (vec!["5".to_owned()], 1));
        assert_eq!(take(&store, "b"), (vec!["6".to_owned()], 0));
        events.add(&event(&["a"], "7")).unwrap();
        let (number, _) = events.waiting("a").unwrap().next.unwrap();
        events.delivered("a", number, 1).unwrap();
        assert_eq!(events.waiting("a").unwrap(), Waiting::default());
    }

    #[test]
    fn event_is_written_with_its_change_or_not_at_all() {
        let (_dir, store) = store();
        let made = begin(&store, snapshot(1), None);
        let options = CommitOptions { event: Some(event(&["a"], "made")), ..CommitOptions::default() };
        store.commit(&[(&made, &options)]).unwrap();
        let now = Timestamp::now();
        assert!(store.retentions().lease(made.id, "ann", now + std::time::Duration::from_secs(60)).unwrap());
        assert!(!store.retentions().begin_sweep(&made, now, Some(&event(&["a"], "swept"))).unwrap());
        store.retentions().release(made.id, "ann").unwrap();
        assert!(store.retentions().begin_sweep(&made, now, Some(&event(&["a"], "expired"))).unwrap());
        let other = begin(&store, snapshot(2), None);
        store.begin_deletion(&other, Some(&event(&["a"], "deleted"))).unwrap();
        assert_eq!(take(&store, "a").0, ["made", "expired", "deleted"]);
    }

    #[test]
    fn condition_is_recorded_with_its_event() {
        let (_dir, store) = store();
        let events = store.events();
        events.set_condition("space", Some("low"), Some(&event(&["a"], "low"))).unwrap();
        events.set_condition("database", Some("damaged"), None).unwrap();
        events.set_condition("database", None, None).unwrap();
        assert_eq!(events.conditions().unwrap(), HashMap::from([("space".to_owned(), "low".to_owned())]));
        assert_eq!(take(&store, "a").0, ["low"]);
    }
}
