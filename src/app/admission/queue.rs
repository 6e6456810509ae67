//! A bounded queue for a bounded number of concurrency slots.
//!
//! Slots are granted in the order of arrival, or fairly: the next slot goes to the user and VM with the fewest. A few
//! spare slots are kept for users and VMs that hold none, so that one of them cannot block the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

/// Work that needs a slot.
pub(crate) trait Queued {
    /// The share that the slot counts for. Work without a share is served in the order of arrival.
    fn share(&self) -> Option<Share> {
        None
    }
}

/// Slots are shared fairly between these: a user and a VM, or a client's address.
pub(crate) type Share = (Arc<str>, Arc<str>);

/// The queue and the running work of one kind.
pub(crate) struct AdmissionQueue<T: Queued>(Arc<Shared<T>>);

struct Shared<T> {
    /// The most requests that may wait.
    max_waiting: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Regular slots.
    limit: usize,
    /// Whether there are spare slots.
    is_fair: bool,
    /// By number, which is the order of arrival.
    entries: BTreeMap<u64, Entry<T>>,
    next: u64,
}

/// A queued or running request.
pub(crate) struct Entry<T> {
    pub work: Arc<T>,
    /// When it was queued, or started to run.
    pub since: Instant,
    pub is_running: bool,
    share: Option<Share>,
    /// Whether it holds a slot. Hung work runs without one.
    has_slot: bool,
    /// Notifies the waiting request that it has a slot.
    wake: Option<oneshot::Sender<()>>,
}

/// No more requests may wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// A request in the queue. Dropping it leaves the queue.
pub(crate) struct QueuedRequest<T: Queued> {
    number: u64,
    work: Arc<T>,
    queue: Arc<Shared<T>>,
}

/// A slot. Dropping it frees the slot.
pub(crate) struct Permit<T: Queued>(QueuedRequest<T>);

impl<T: Queued> AdmissionQueue<T> {
    /// A queue with `limit` slots, in which at most `max_waiting` requests wait. First come, first served.
    pub(crate) fn new(limit: usize, max_waiting: usize) -> Self {
        Self::with(limit, max_waiting, false)
    }

    /// As [`AdmissionQueue::new`], with fairly shared slots.
    pub(crate) fn fair(limit: usize, max_waiting: usize) -> Self {
        Self::with(limit, max_waiting, true)
    }

    fn with(limit: usize, max_waiting: usize, is_fair: bool) -> Self {
        let state = Mutex::new(State { limit, is_fair, entries: BTreeMap::new(), next: 0 });
        Self(Arc::new(Shared { max_waiting, state }))
    }

    pub(crate) fn limit(&self) -> usize {
        self.0.state().limit
    }

    /// Changes the number of slots. Work that has one keeps it.
    pub(crate) fn set_limit(&self, limit: usize) {
        let mut state = self.0.state();
        state.limit = limit;
        self.0.grant_slots(&mut state);
    }

    /// The number of spare slots.
    pub(crate) fn spare(&self) -> usize {
        self.0.state().spare()
    }

    /// Queues `work`. If the queue is full, a share with few waiting requests displaces the last request of the share
    /// with the most.
    pub(crate) fn join(&self, work: T) -> Result<QueuedRequest<T>, QueueFull> {
        let share = work.share();
        let mut state = self.0.state();
        let waiting = state.entries.values().filter(|entry| !entry.is_running).count();
        // Waiting requests are about to take the free slots.
        let free = state.limit.saturating_sub(state.holding());
        if waiting >= self.0.max_waiting + free {
            state.displace_for(share.as_ref())?;
        }
        let number = state.next;
        state.next += 1;
        let work = Arc::new(work);
        let (since, wake) = (Instant::now(), None);
        let entry = Entry { work: Arc::clone(&work), since, is_running: false, share, has_slot: false, wake };
        state.entries.insert(number, entry);
        Ok(QueuedRequest { number, work, queue: Arc::clone(&self.0) })
    }

    /// Calls `visit` for all requests, in the order of arrival.
    pub(crate) fn each(&self, visit: impl FnMut(&Entry<T>)) {
        self.0.state().entries.values().for_each(visit);
    }

    /// Whether a request would get a regular slot at once.
    pub(crate) fn has_free_slot(&self) -> bool {
        let state = self.0.state();
        state.entries.values().all(|entry| entry.is_running) && state.holding() < state.limit
    }

    /// Whether nothing is running or waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.state().entries.is_empty()
    }

    /// How many requests wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.0.state().entries.values().filter(|entry| entry.wake.is_some()).count()
    }

    /// Releases the slots of all work that `hangs`. That work continues without a slot.
    pub(crate) fn release_slots(&self, mut hangs: impl FnMut(&T) -> bool) {
        let mut state = self.0.state();
        for entry in state.entries.values_mut().filter(|entry| entry.has_slot) {
            entry.has_slot = !hangs(&entry.work);
        }
        self.0.grant_slots(&mut state);
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free slots to waiting requests.
    fn grant_slots(&self, state: &mut State<T>) {
        while let Some(number) = state.next_to_run() {
            let Some(entry) = state.entries.get_mut(&number) else { return };
            (entry.since, entry.is_running, entry.has_slot) = (Instant::now(), true, true);
            // If the client has disconnected, dropping its request frees the slot.
            entry.wake.take().map(|wake| wake.send(()));
        }
    }
}

impl<T> State<T> {
    /// The number of further slots, for shares that hold none while another share holds several.
    fn spare(&self) -> usize {
        if self.is_fair { self.limit.div_ceil(4) } else { 0 }
    }

    /// How many slots are taken.
    fn holding(&self) -> usize {
        self.entries.values().filter(|entry| entry.has_slot).count()
    }

    /// The request that gets the next slot, if one is free.
    fn next_to_run(&self) -> Option<u64> {
        let waiting = || self.entries.iter().filter(|(_, entry)| entry.wake.is_some());
        waiting().next()?;
        let holding = self.holding();
        if holding >= self.limit + self.spare() {
            return None;
        }
        let (mut of_share, mut of_user) = (HashMap::<&Share, usize>::new(), HashMap::<&str, usize>::new());
        for share in self.entries.values().filter(|entry| entry.has_slot).filter_map(|entry| entry.share.as_ref()) {
            *of_share.entry(share).or_default() += 1;
            *of_user.entry(&share.0).or_default() += 1;
        }
        let has = |entry: &Entry<T>| {
            let share = entry.share.as_ref();
            let slots = share.and_then(|share| of_share.get(share)).copied().unwrap_or_default();
            (slots, share.and_then(|share| of_user.get(&*share.0)).copied().unwrap_or_default())
        };
        let ((slots, _), number) = waiting().map(|(number, entry)| (has(entry), *number)).min()?;
        let others_have_several = of_share.values().any(|slots| *slots > 1);
        let may = holding < self.limit || (slots == 0 && others_have_several);
        may.then_some(number)
    }

    /// Makes room for a request of `share` by removing the last request of the share with the most waiting requests.
    /// That share must have at least two more than `share`.
    fn displace_for(&mut self, share: Option<&Share>) -> Result<(), QueueFull> {
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
        // Dropping its sender notifies the displaced request.
        self.entries.remove(&last);
        Ok(())
    }
}

impl<T: Queued> QueuedRequest<T> {
    /// Waits for a slot.
    ///
    /// # Errors
    /// If another request displaced this one.
    pub(crate) async fn admitted(self) -> Result<Permit<T>, QueueFull> {
        let (wake, woken) = oneshot::channel();
        {
            let mut state = self.queue.state();
            state.entries.get_mut(&self.number).ok_or(QueueFull)?.wake = Some(wake);
            self.queue.grant_slots(&mut state);
        }
        woken.await.map_err(|_| QueueFull)?;
        Ok(Permit(self))
    }
}

impl<T: Queued> Drop for QueuedRequest<T> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.entries.remove(&self.number);
        self.queue.grant_slots(&mut state);
    }
}

impl<T: Queued> Permit<T> {
    /// Releases the slot because this work hangs. The work is still listed as running.
    pub(crate) fn release(&mut self) {
        let mut state = self.0.queue.state();
        if let Some(entry) = state.entries.get_mut(&self.0.number) {
            entry.has_slot = false;
        }
        self.0.queue.grant_slots(&mut state);
    }

    pub(crate) fn work(&self) -> &T {
        &self.0.work
    }
}

#[cfg(test)]
mod tests;
