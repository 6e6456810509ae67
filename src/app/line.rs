//! A line before a bounded number of places: who works, who waits, and an end to waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Work of one kind. First come, first served.
pub(super) struct Line<T> {
    /// How many work at a time.
    limit: usize,
    /// How many may wait.
    queue: usize,
    places: Arc<Semaphore>,
    entries: Arc<Entries<T>>,
}

/// By number, in the order in which they came.
type Entries<T> = Mutex<BTreeMap<u64, Entry<T>>>;

/// Who stands in a line.
pub(super) struct Entry<T> {
    pub what: Arc<T>,
    /// Since when it stands there, or works.
    pub since: Instant,
    pub works: bool,
    /// The place where it works, while it has one.
    permit: Option<OwnedSemaphorePermit>,
}

/// The line is as long as it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// A stand in the line, which is left when this is dropped.
pub(super) struct Ticket<T> {
    number: u64,
    what: Arc<T>,
    places: Arc<Semaphore>,
    entries: Arc<Entries<T>>,
}

/// A place to work, which is free again when this is dropped.
pub(super) struct Place<T>(Ticket<T>);

fn lock<T>(entries: &Entries<T>) -> MutexGuard<'_, BTreeMap<u64, Entry<T>>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Line<T> {
    /// `limit` work at a time, and no more than `queue` wait.
    pub(super) fn new(limit: usize, queue: usize) -> Self {
        Self { limit, queue, places: Arc::new(Semaphore::new(limit)), entries: Arc::default() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a stand at the end of the line.
    pub(super) fn join(&self, what: T) -> Result<Ticket<T>, TooLong> {
        let mut entries = lock(&self.entries);
        // Free places are about to be taken by those who wait.
        let waiting = entries.values().filter(|entry| !entry.works).count();
        if waiting >= self.queue + self.places.available_permits() {
            return Err(TooLong);
        }
        let number = entries.last_key_value().map_or(0, |(last, _)| last + 1);
        let what = Arc::new(what);
        entries.insert(number, Entry { what: Arc::clone(&what), since: Instant::now(), works: false, permit: None });
        Ok(Ticket { number, what, places: Arc::clone(&self.places), entries: Arc::clone(&self.entries) })
    }

    /// Looks at all who stand in the line, in order.
    pub(super) fn each(&self, mut look: impl FnMut(&Entry<T>)) {
        lock(&self.entries).values().for_each(&mut look);
    }

    /// Gives the places of all whose work is `stuck` to others; they go on without.
    pub(super) fn free(&self, mut stuck: impl FnMut(&T) -> bool) {
        let mut entries = lock(&self.entries);
        let taken = |entry: &mut Entry<T>| if stuck(&entry.what) { entry.permit.take() } else { None };
        let permits: Vec<_> = entries.values_mut().filter(|entry| entry.permit.is_some()).filter_map(taken).collect();
        drop(entries);
        drop(permits);
    }
}

impl<T> Ticket<T> {
    /// Waits for a place.
    pub(super) async fn place(self) -> Place<T> {
        // Nobody closes it: there is always a permit.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        if let Some(entry) = lock(&self.entries).get_mut(&self.number) {
            (entry.since, entry.works, entry.permit) = (Instant::now(), true, permit);
        }
        Place(self)
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        lock(&self.entries).remove(&self.number);
    }
}

impl<T> Place<T> {
    /// Lets somebody else work: this work hangs. It still is seen at work.
    pub(super) fn give_up(&mut self) {
        let permit = lock(&self.0.entries).get_mut(&self.0.number).and_then(|entry| entry.permit.take());
        drop(permit);
    }

    pub(super) fn what(&self) -> &T {
        &self.0.what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(line: &Line<u8>) -> Vec<(u8, bool)> {
        let mut all = Vec::new();
        line.each(|entry| all.push((*entry.what, entry.works)));
        all
    }

    #[tokio::test]
    async fn places_are_given_in_order_and_the_queue_has_an_end() {
        let line = Line::new(1, 2);
        let first = line.join(1).unwrap().place().await;
        let (second, third) = (line.join(2).unwrap(), line.join(3).unwrap());
        assert_eq!(line.join(4).err(), Some(TooLong));
        assert_eq!(standing(&line), [(1, true), (2, false), (3, false)]);
        // Who goes away makes room, and is not served.
        drop(second);
        let fourth = line.join(4).unwrap();
        drop(first);
        let third = third.place().await;
        assert_eq!((*third.what(), standing(&line)), (3, vec![(3, true), (4, false)]));
        // Who is stuck, and who gives up, keeps its stand, and another works.
        let mut third = third;
        line.free(|what| *what == 3);
        let fourth = fourth.place().await;
        assert_eq!(standing(&line), [(3, true), (4, true)]);
        third.give_up();
        assert_eq!(line.places.available_permits(), 0);
        drop(third);
        assert_eq!(line.places.available_permits(), 0);
        let mut fourth = fourth;
        fourth.give_up();
        assert_eq!((line.places.available_permits(), standing(&line)), (1, vec![(4, true)]));
        drop(fourth);
        assert_eq!(line.places.available_permits(), 1);
        assert_eq!(standing(&line), []);
        // A burst on an idle line: those who will work at once are no queue.
        let burst: Vec<_> = (0..3).map(|n| line.join(n).unwrap()).collect();
        assert_eq!(line.join(9).err(), Some(TooLong));
        drop(burst);
    }
}
