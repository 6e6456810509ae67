//! A line before a bounded number of places: who works, who waits, and an end to waiting.
//!
//! Places go to whoever has come first, or are shared fairly: the next one goes to the user and VM that has fewest.
//! So that none of them can hold all places while another waits, a few more are kept for those that hold none.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::model::VmId;

/// Work that waits for a place.
pub(crate) trait Queued {
    /// Whose it is, where places are shared; those of nobody are served as they come.
    fn share(&self) -> Option<Share>;
}

/// Among whom places are shared: a user, and a VM.
pub(crate) type Share = (Arc<str>, VmId);

/// Work of one kind.
pub(crate) struct AdmissionQueue<T: Queued>(Arc<Shared<T>>);

struct Shared<T> {
    /// How many work at a time.
    limit: usize,
    /// How many more may, each for a share that has no place, while another share has several.
    spare: usize,
    /// How many may wait.
    queue: usize,
    standing: Mutex<Standing<T>>,
}

struct Standing<T> {
    /// By number, in the order in which they came.
    entries: BTreeMap<u64, Entry<T>>,
    next: u64,
}

/// Who stands in a line.
pub(crate) struct Entry<T> {
    pub what: Arc<T>,
    /// Since when it stands there, or works.
    pub since: Instant,
    pub works: bool,
    share: Option<Share>,
    /// Whether it takes one of the places.
    has_place: bool,
    /// Tells it that it has one, while it waits for that.
    wake: Option<oneshot::Sender<()>>,
}

/// The line is as long as it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// A stand in the line, which is left when this is dropped.
pub(crate) struct QueuedRequest<T: Queued> {
    number: u64,
    what: Arc<T>,
    line: Arc<Shared<T>>,
}

/// A place to work, which is free again when this is dropped.
pub(crate) struct Permit<T: Queued>(QueuedRequest<T>);

impl<T: Queued> AdmissionQueue<T> {
    /// `limit` work at a time, and no more than `queue` wait. First come, first served.
    pub(crate) fn new(limit: usize, queue: usize) -> Self {
        Self::with_spare(limit, 0, queue)
    }

    /// The same, shared fairly.
    pub(crate) fn fair(limit: usize, queue: usize) -> Self {
        Self::with_spare(limit, limit.div_ceil(4), queue)
    }

    fn with_spare(limit: usize, spare: usize, queue: usize) -> Self {
        let standing = Mutex::new(Standing { entries: BTreeMap::new(), next: 0 });
        Self(Arc::new(Shared { limit, spare, queue, standing }))
    }

    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// Takes a stand at the end of the line. Where that is as long as it may be, the last of a share that has many
    /// in it has to leave for one of a share that has few.
    pub(crate) fn join(&self, what: T) -> Result<QueuedRequest<T>, QueueFull> {
        let share = what.share();
        let mut standing = self.0.standing();
        let waiting = standing.entries.values().filter(|entry| !entry.works).count();
        // Free places are about to be taken by those who wait.
        let free = self.0.limit.saturating_sub(standing.holding());
        if waiting >= self.0.queue + free {
            standing.turn_one_away_for(share.as_ref())?;
        }
        let number = standing.next;
        standing.next += 1;
        let what = Arc::new(what);
        let (since, wake) = (Instant::now(), None);
        let entry = Entry { what: Arc::clone(&what), since, works: false, share, has_place: false, wake };
        standing.entries.insert(number, entry);
        Ok(QueuedRequest { number, what, line: Arc::clone(&self.0) })
    }

    /// Looks at all who stand in the line, in order.
    pub(crate) fn each(&self, look: impl FnMut(&Entry<T>)) {
        self.0.standing().entries.values().for_each(look);
    }

    /// How many wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.0.standing().entries.values().filter(|entry| entry.wake.is_some()).count()
    }

    /// Gives the places of all whose work is `stuck` to others; they go on without.
    pub(crate) fn release_slots(&self, mut stuck: impl FnMut(&T) -> bool) {
        let mut standing = self.0.standing();
        for entry in standing.entries.values_mut().filter(|entry| entry.has_place) {
            entry.has_place = !stuck(&entry.what);
        }
        self.0.hand_out(&mut standing);
    }
}

impl<T> Shared<T> {
    fn standing(&self) -> MutexGuard<'_, Standing<T>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the places that are free to those who wait.
    fn hand_out(&self, standing: &mut Standing<T>) {
        while let Some(number) = standing.next_to_work(self.limit, self.spare) {
            let Some(entry) = standing.entries.get_mut(&number) else { return };
            (entry.since, entry.works, entry.has_place) = (Instant::now(), true, true);
            // One that has gone away gives it back when it is dropped.
            entry.wake.take().map(|wake| wake.send(()));
        }
    }
}

impl<T> Standing<T> {
    /// How many places are taken.
    fn holding(&self) -> usize {
        self.entries.values().filter(|entry| entry.has_place).count()
    }

    /// Whose turn it is, if there is a place.
    fn next_to_work(&self, limit: usize, spare: usize) -> Option<u64> {
        let waiting = || self.entries.iter().filter(|(_, entry)| entry.wake.is_some());
        waiting().next()?;
        let holding = self.holding();
        if holding >= limit + spare {
            return None;
        }
        let (mut of_share, mut of_user) = (HashMap::<&Share, usize>::new(), HashMap::<&str, usize>::new());
        for share in self.entries.values().filter(|entry| entry.has_place).filter_map(|entry| entry.share.as_ref()) {
            *of_share.entry(share).or_default() += 1;
            *of_user.entry(&share.0).or_default() += 1;
        }
        let has = |entry: &Entry<T>| {
            let share = entry.share.as_ref();
            let places = share.and_then(|share| of_share.get(share)).copied().unwrap_or_default();
            (places, share.and_then(|share| of_user.get(&*share.0)).copied().unwrap_or_default())
        };
        let ((places, _), number) = waiting().map(|(number, entry)| (has(entry), *number)).min()?;
        let others_have_several = of_share.values().any(|places| *places > 1);
        let may = holding < limit || (places == 0 && others_have_several);
        may.then_some(number)
    }

    /// Makes room for one of `share`, which must not have as many in the line as another.
    fn turn_one_away_for(&mut self, share: Option<&Share>) -> Result<(), QueueFull> {
        let mut waiting = HashMap::<&Share, (usize, u64)>::new();
        for (number, entry) in self.entries.iter().filter(|(_, entry)| entry.wake.is_some()) {
            let Some(share) = &entry.share else { continue };
            let (count, last) = waiting.entry(share).or_default();
            (*count, *last) = (*count + 1, *number);
        }
        let ours = share.and_then(|share| waiting.get(share)).map_or(0, |(count, _)| *count);
        let (most, last) = waiting.into_values().max().filter(|_| share.is_some()).ok_or(QueueFull)?;
        if ours + 1 >= most {
            return Err(QueueFull);
        }
        // Its sender is dropped, by which it hears of it.
        self.entries.remove(&last);
        Ok(())
    }
}

impl<T: Queued> QueuedRequest<T> {
    /// Waits for a place.
    ///
    /// # Errors
    /// Where it had to leave the line for another.
    pub(crate) async fn admitted(self) -> Result<Permit<T>, QueueFull> {
        let (wake, woken) = oneshot::channel();
        {
            let mut standing = self.line.standing();
            standing.entries.get_mut(&self.number).ok_or(QueueFull)?.wake = Some(wake);
            self.line.hand_out(&mut standing);
        }
        woken.await.map_err(|_| QueueFull)?;
        Ok(Permit(self))
    }
}

impl<T: Queued> Drop for QueuedRequest<T> {
    fn drop(&mut self) {
        let mut standing = self.line.standing();
        standing.entries.remove(&self.number);
        self.line.hand_out(&mut standing);
    }
}

impl<T: Queued> Permit<T> {
    /// Lets somebody else work: this work hangs. It still is seen at work.
    pub(crate) fn release(&mut self) {
        let mut standing = self.0.line.standing();
        if let Some(entry) = standing.entries.get_mut(&self.0.number) {
            entry.has_place = false;
        }
        self.0.line.hand_out(&mut standing);
    }

    pub(crate) fn what(&self) -> &T {
        &self.0.what
    }
}

#[cfg(test)]
mod tests;
