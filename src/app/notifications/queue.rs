//! The queue of one webhook: in the database and, as far as that could not be written, in memory. That it cannot be
//! written is worth an event too.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Events, Outcome, QueueChanges, StoreError};

/// The most events in memory.
const MAX_IN_MEMORY: usize = 100;

/// The pause after the database could not be read or written.
pub(super) const DATABASE_PAUSE: Duration = Duration::from_secs(10);

/// The least pause between two attempts to write, if something newer is to be written.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// What is not in the database yet.
#[derive(Default)]
pub(super) struct Queue {
    /// Events that could not be written, by id, the oldest first. They are newer than those in the database.
    events: VecDeque<(String, Vec<u8>)>,
    /// What became of events in the database, and how many were dropped from memory.
    changes: QueueChanges,
    /// No attempt to write before then.
    next_write: Option<Instant>,
}

/// Where an event waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By number.
    Database(u64),
    /// By id.
    Memory(String),
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub next: Option<(Place, Vec<u8>)>,
    pub queued: u64,
    /// Events that were dropped and not reported yet.
    pub dropped: u64,
}

impl Queue {
    /// Keeps an event that could not be written. Returns whether the oldest one but the first was dropped for it, because
    /// the newest tell more.
    pub(super) fn keep(&mut self, id: &str, body: &[u8]) -> bool {
        self.next_write.get_or_insert_with(|| Instant::now() + DATABASE_PAUSE);
        if self.events.iter().any(|(other, _)| other == id) {
            return false;
        }
        self.events.push_back((id.to_owned(), body.to_vec()));
        let is_full = self.events.len() > MAX_IN_MEMORY;
        if is_full {
            // The first one may be under way.
            self.events.remove(1);
            self.changes.dropped += 1;
        }
        is_full
    }

    /// Notes what became of an event, and that the webhook has learned of `reported` dropped ones.
    pub(super) fn finish(&mut self, place: Place, outcome: Outcome, reported: u64) {
        self.changes.reported += reported;
        match place {
            Place::Database(number) => drop(self.changes.outcomes.insert(number, outcome)),
            Place::Memory(id) => {
                // It may have been written or dropped meanwhile.
                let Some(index) = self.events.iter().position(|(other, _)| *other == id) else { return };
                let event = self.events.remove(index);
                match outcome {
                    Outcome::Delivered => {}
                    Outcome::GivenUp => self.changes.dropped += 1,
                    Outcome::Postponed => self.events.extend(event),
                }
            }
        }
    }

    /// Gives up the first events, as long as they are old.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn give_up_old(
        &mut self,
        (store, webhook): (&Events<'_>, &str),
        is_old: impl Fn(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        while self.events.front().is_some_and(|(_, body)| is_old(body)) {
            self.events.pop_front();
            self.changes.dropped += 1;
        }
        for number in store.first_while(webhook, &self.changes.outcomes, is_old)? {
            self.changes.outcomes.insert(number, Outcome::GivenUp);
        }
        Ok(())
    }

    /// Whether events wait in memory, and the last attempt to write them was not a moment ago.
    pub(super) fn may_be_overtaken(&self) -> bool {
        let is_recent = self.next_write.is_some_and(|next| next > Instant::now() + DATABASE_PAUSE - MIN_PAUSE);
        !self.events.is_empty() && !is_recent
    }

    /// When the next attempt to write is due. `None` if everything is in the database.
    pub(super) fn next_write(&self) -> Option<Instant> {
        let QueueChanges { outcomes, reported, unwritten: _, dropped } = &self.changes;
        let is_written = self.events.is_empty() && outcomes.is_empty() && (*reported, *dropped) == (0, 0);
        (!is_written).then(|| self.next_write.unwrap_or_else(Instant::now))
    }

    /// Writes everything into the database.
    ///
    /// # Errors
    /// The database cannot be written. What is in memory remains there.
    pub(super) fn write(&mut self, store: &Events<'_>, webhook: &str, max_queued: u64) -> Result<(), StoreError> {
        self.changes.unwritten = self.events.iter().map(|(_, body)| body.clone()).collect();
        let written = store.record(webhook, &self.changes, max_queued);
        self.changes.unwritten.clear();
        match written {
            Ok(()) => *self = Self::default(),
            Err(_) => self.next_write = Some(Instant::now() + DATABASE_PAUSE),
        }
        written
    }

    /// What waits in the database and in memory.
    ///
    /// # Errors
    /// The database cannot be read, and nothing waits in memory.
    pub(super) fn waiting(&self, store: &Events<'_>, webhook: &str) -> Result<Waiting, StoreError> {
        let QueueChanges { outcomes, reported, unwritten: _, dropped } = &self.changes;
        let in_database = match store.waiting(webhook, outcomes) {
            Ok(waiting) => waiting,
            // What is in memory can be delivered without the database.
            Err(_) if !self.events.is_empty() => crate::store::Waiting::default(),
            Err(error) => return Err(error),
        };
        let of = |outcome| outcomes.values().filter(|other| **other == outcome).count() as u64;
        let done = of(Outcome::Delivered) + of(Outcome::GivenUp);
        let first_in_memory = || self.events.front().map(|(id, body)| (Place::Memory(id.clone()), body.clone()));
        Ok(Waiting {
            next: in_database.next.map(|(number, body)| (Place::Database(number), body)).or_else(first_in_memory),
            queued: in_database.queued.saturating_sub(done) + self.events.len() as u64,
            dropped: (in_database.dropped + dropped + of(Outcome::GivenUp)).saturating_sub(*reported),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewEvent, Store};

    fn store_with(bodies: &[&str]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("x.db")).unwrap();
        for body in bodies {
            let event =
                NewEvent { webhooks: vec!["a".to_owned()], body: body.as_bytes().to_vec(), max_queued: u64::MAX };
            store.events().add(&event).unwrap();
        }
        (dir, store)
    }

    fn next(queue: &Queue, store: &Store) -> (Place, String) {
        let (place, body) = queue.waiting(&store.events(), "a").unwrap().next.unwrap();
        (place, String::from_utf8(body).unwrap())
    }

    fn counts(queue: &Queue, store: &Store) -> (u64, u64) {
        let waiting = queue.waiting(&store.events(), "a").unwrap();
        (waiting.queued, waiting.dropped)
    }

    /// As long as the database can be read and not written.
    #[test]
    fn deliveries_go_on_although_nothing_can_be_recorded() {
        let (_dir, store) = store_with(&["1", "2", "3"]);
        let mut queue = Queue::default();
        queue.keep("id-4", b"4");
        queue.keep("id-5", b"5");
        let mut order = Vec::new();
        for outcome in [Outcome::Delivered, Outcome::GivenUp, Outcome::Postponed, Outcome::Postponed] {
            let (place, body) = next(&queue, &store);
            order.push(body);
            queue.finish(place, outcome, 0);
        }
        assert_eq!(order, ["1", "2", "3", "4"]);
        assert_eq!((next(&queue, &store).1, counts(&queue, &store)), ("5".to_owned(), (3, 1)));
        // Once it can be written, nothing is delivered twice, and nothing is lost.
        queue.write(&store.events(), "a", 10).unwrap();
        assert_eq!((queue.next_write(), counts(&queue, &store)), (None, (3, 1)));
        let rest = [(); 3].map(|()| {
            let (place, body) = next(&queue, &store);
            queue.finish(place, Outcome::Delivered, 0);
            body
        });
        assert_eq!((rest.concat(), counts(&queue, &store)), ("354".to_owned(), (0, 1)));
        queue.finish(Place::Database(99), Outcome::Delivered, 1);
        queue.write(&store.events(), "a", 10).unwrap();
        assert_eq!(counts(&queue, &store), (0, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let (_dir, store) = store_with(&[]);
        let mut queue = Queue::default();
        let dropped = (0..MAX_IN_MEMORY + 2).filter(|number| queue.keep(&number.to_string(), b"x")).count();
        assert_eq!((dropped, counts(&queue, &store)), (2, (MAX_IN_MEMORY as u64, 2)));
        assert_eq!(next(&queue, &store).0, Place::Memory("0".to_owned()));
        // One that was dropped meanwhile.
        queue.finish(Place::Memory("1".to_owned()), Outcome::Delivered, 0);
        assert_eq!(counts(&queue, &store), (MAX_IN_MEMORY as u64, 2));
        // An event that is reported twice.
        queue.finish(Place::Memory("0".to_owned()), Outcome::Delivered, 0);
        assert!(!queue.keep("99", b"x"));
        assert_eq!(counts(&queue, &store), (MAX_IN_MEMORY as u64 - 1, 2));
    }

    #[test]
    fn all_old_events_are_given_up_at_once() {
        let (_dir, store) = store_with(&["old", "old", "new", "old"]);
        let mut queue = Queue::default();
        queue.keep("5", b"old");
        queue.keep("6", b"new");
        queue.give_up_old((&store.events(), "a"), |body| body == b"old").unwrap();
        assert_eq!((next(&queue, &store).1.as_str(), counts(&queue, &store)), ("new", (3, 3)));
        queue.write(&store.events(), "a", 10).unwrap();
        assert_eq!(counts(&queue, &store), (3, 3));
    }
}
