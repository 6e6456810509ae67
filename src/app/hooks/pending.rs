//! Pending post hooks: called at the start after a crash, and retried after failures.
//!
//! A guest that a `pre` hook froze must be thawed. So a pending post hook stays recorded until its call succeeds, or
//! until its retries end after a week.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::threads::{Calls, Writes};
use super::unwritten::{Change, Unwritten};
use crate::app::Error;
use crate::app::admission::{LockMode, VmGuard, VmLocks};
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::app::notifications::{Event, Notifications};
use crate::app::tasks::rounds;
use crate::hooks::{Hooks, Operation, PendingPostHooks, run_isolated};
use crate::metrics::Metrics;
use crate::model::{PendingHooksKey, SnapshotId, VmId};
use crate::store::Store;

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// So many retries, one each round: an hour.
pub(super) const MINUTELY_RETRIES: u32 = 60;

/// After that, one retry in so many rounds: a day. And one at each start.
const DAILY_INTERVAL: u64 = 24 * 60;

/// How long the database may take to list pending post hooks when the service stops.
const FINAL_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The recorded pending post hooks.
#[derive(Default)]
pub(crate) struct Pending {
    pub readable: Vec<(PendingHooksKey, PendingPostHooks)>,
    /// Unreadable records, by key, with the reason. They are kept, because a newer version may have written them.
    pub unreadable: Vec<(PendingHooksKey, String)>,
}

/// Groups by VM name: the pending post hooks of one VM are called one after the other.
fn by_vm(
    entries: impl Iterator<Item = (PendingHooksKey, PendingPostHooks)>,
) -> BTreeMap<String, Vec<(PendingHooksKey, PendingPostHooks)>> {
    let mut by_vm: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, post_hooks) in entries {
        by_vm.entry(post_hooks.event.vm.name.clone()).or_default().push((key, post_hooks));
    }
    by_vm
}

/// Records and calls pending post hooks.
pub(crate) struct PendingHooks {
    pub(super) hooks: Arc<Hooks>,
    store: Store,
    pub(super) unwritten: Unwritten,
    /// Operations from their `pre` to the end of their `post`. Their guests may be frozen.
    active: TaskTracker,
    vm_locks: Arc<VmLocks>,
    inventory: Arc<Inventory>,
    notifications: Arc<Notifications>,
    metrics: Arc<Metrics>,
}

impl PendingHooks {
    pub(crate) fn new(common: &Common, hooks: Hooks) -> Self {
        let Common { inventory, admission, notifications, metrics, store, .. } = common.clone();
        let vm_locks = Arc::clone(&admission.vm_locks);
        let (hooks, unwritten, active) = (Arc::new(hooks), Unwritten::default(), TaskTracker::new());
        Self { hooks, store, unwritten, active, vm_locks, inventory, notifications, metrics }
    }

    /// Marks an operation as active: its guest may be frozen until the token is dropped. `None` if the service has
    /// stopped waiting for operations, so that no guest may be frozen any more.
    pub(super) fn hold(&self) -> Option<TaskTrackerToken> {
        // In this order: `release_guests` waits for a token that was made before it closed the tracker.
        let token = self.active.token();
        (!self.active.is_closed()).then_some(token)
    }

    /// All pending post hooks.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) fn entries(&self) -> Result<Pending, Error> {
        let unwritten = self.unwritten.lock().clone();
        let mut entries = Pending::default();
        for (key, written) in self.store.pending_hooks().all()? {
            match PendingPostHooks::from_bytes(&written) {
                _ if unwritten.contains_key(&key) => {}
                Ok(post_hooks) => entries.readable.push((key, post_hooks)),
                Err(error) => entries.unreadable.push((key, error.to_string())),
            }
        }
        entries.readable.extend(unwritten.into_iter().filter_map(|(key, change)| Some((key, change.post_hooks?))));
        Ok(entries)
    }

    /// Records the pending post hooks of an operation that is about to start. They replace all that was recorded or
    /// changed under this key before.
    ///
    /// # Errors
    /// If that fails. Then no hook may be called.
    pub(crate) fn begin(&self, key: PendingHooksKey, post_hooks: &PendingPostHooks) -> Result<(), Error> {
        self.unwritten.begin(key, |events| self.record(key, post_hooks, events))
    }

    fn record(&self, key: PendingHooksKey, post_hooks: &PendingPostHooks, events: &[Event]) -> Result<(), Error> {
        let bytes = post_hooks.to_bytes().map_err(|error| Error::Internal(format!("pending post hooks: {error}")))?;
        let record = |events: &[_]| self.store.pending_hooks().record(key, &bytes, events);
        Ok(self.notifications.announce_with(events, record)?)
    }

    /// The key for the pending post hooks of an `operation` on the snapshot `id`, and the programs that are still
    /// pending from an earlier operation of the same kind.
    pub(crate) fn pending_earlier(
        &self,
        operation: Operation,
        id: SnapshotId,
    ) -> Result<(PendingHooksKey, Vec<OsString>), Error> {
        let (key, entries) = (operation.pending_hooks_key(id), self.entries()?);
        if entries.unreadable.iter().any(|(other, _)| *other == key) {
            // An unreadable record is not overwritten.
            let free = SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128());
            return Ok((operation.pending_hooks_key(free), Vec::new()));
        }
        let earlier = entries.readable.into_iter().find(|(other, _)| *other == key);
        Ok((key, earlier.and_then(|(_, post_hooks)| post_hooks.hooks).map(|hooks| hooks.programs).unwrap_or_default()))
    }

    /// Records pending post hooks, or removes them with `None`. If the database fails, the change is kept and retried.
    pub(crate) fn set(&self, key: PendingHooksKey, post_hooks: Option<PendingPostHooks>) {
        self.put(key, post_hooks, Vec::new());
        self.write_change(key);
    }

    /// Makes a change that [`Self::write_change`] or the next round writes, together with the events about it. It counts
    /// at once, even if no thread can be started to write it.
    pub(super) fn put(&self, key: PendingHooksKey, post_hooks: Option<PendingPostHooks>, events: Vec<Event>) {
        self.unwritten.put(key, Change { post_hooks, events });
    }

    /// Writes the newest change of `key`. The database may be slow.
    pub(super) fn write_change(&self, key: PendingHooksKey) {
        self.unwritten.write_one(key, |key, change| self.write(key, change));
    }

    fn write(&self, key: PendingHooksKey, Change { post_hooks, events }: &Change) -> Result<(), Error> {
        match post_hooks {
            Some(post_hooks) => self.record(key, post_hooks, events),
            None => {
                let clear = |events: &[_]| self.store.pending_hooks().clear(key, events);
                Ok(self.notifications.announce_with(events, clear)?)
            }
        }
    }

    pub(super) fn write_unwritten(&self) {
        self.unwritten.write_all(|key, change| self.write(key, change));
    }

    /// Locks the VM of pending post hooks. Returns nothing if its snapshots are being changed, by this service or
    /// another exporter.
    async fn lock_vm(
        self: &Arc<Self>,
        vm: &str,
        entries: &[(PendingHooksKey, PendingPostHooks)],
        mode: LockMode,
    ) -> Option<VmGuard> {
        let vm: VmId = vm.parse().ok()?;
        let own = self.vm_locks.try_take(&vm)?;
        let disks = entries.iter().flat_map(|(_, post_hooks)| &post_hooks.event.disks);
        let paths: Vec<_> = disks.map(|disk| disk.path.clone().into()).collect();
        let guard = self.vm_locks.lock(own, &vm, self.inventory.repositories_at(&paths), mode).await;
        guard.inspect_err(|error| tracing::warn!(%vm, %error, "cannot lock the VM for its pending post hooks")).ok()
    }

    /// Calls pending post hooks. The database may be slow, so their result is one of the `writes`.
    async fn call_again(self: &Arc<Self>, key: PendingHooksKey, post_hooks: PendingPostHooks, writes: &mut Writes) {
        let active = self.active.token();
        let ended = self.hooks.call_pending(&post_hooks).await;
        self.metrics.hooks(post_hooks.event.operation.as_str(), &ended.runs);
        self.put_result(key, PendingPostHooks { finished: ended.finished, ..post_hooks }, ended.failed, &ended.runs);
        let pending = Arc::clone(self);
        writes.start(move || {
            let _active = active;
            pending.write_change(key);
        });
    }

    /// Calls the post hooks of operations that a crash or stop interrupted. The operations themselves are undone later.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn call_after_start(self: &Arc<Self>) -> Result<(), Error> {
        let entries = self.write_and_read().await?;
        // Hooks that have failed before do not delay the start; the first round calls them.
        let mut calls = Calls::default();
        for (vm, entries) in by_vm(entries.readable.into_iter().filter(|(_, post_hooks)| post_hooks.attempts == 0)) {
            // If a call does not begin or end, the rounds repeat it.
            for (key, post_hooks) in &entries {
                self.put(*key, post_hooks.clone().failed(), Vec::new());
            }
            let pending = Arc::clone(self);
            let call = async move {
                for (_, post_hooks) in &entries {
                    let (snapshot, vm, operation) =
                        (&post_hooks.event.snapshot_id, &post_hooks.event.vm.name, post_hooks.event.operation.as_str());
                    tracing::warn!(
                        snapshot,
                        vm,
                        operation,
                        "the service stopped before this operation's post hooks were called"
                    );
                }
                // Another exporter may have frozen the guest since, for a snapshot that a thaw would spoil; it will
                // thaw the guest soon. If the lock stays taken, the hooks are called anyway: a guest must not stay
                // frozen.
                let _guard = pending.lock_vm(&vm, &entries, LockMode::THAW).await;
                let mut writes = Writes::default();
                for (key, post_hooks) in entries {
                    pending.call_again(key, post_hooks, &mut writes).await;
                }
                writes.finish().await;
            };
            calls.start(call).await;
        }
        calls.finish().await;
        Ok(())
    }

    /// Retries failed post hooks regularly, until `stop`. Everything runs on its own threads, because the service's
    /// pool may be blocked.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let rounds = async move {
            let mut rounds = rounds(INTERVAL);
            for round in 0.. {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = rounds.tick() => {}
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.call_failed(round) => {}
                }
            }
        };
        match run_isolated(rounds) {
            Ok(over) => drop(over.await),
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot start a thread: failed post hooks are not retried before the next start"
                )
            }
        }
    }

    /// One round. Skips VMs whose snapshots are being changed, because their guests may be frozen on purpose.
    pub(crate) async fn call_failed(self: &Arc<Self>, round: u64) {
        let (pending, mut writes) = (Arc::clone(self), Writes::default());
        writes.start(move || pending.write_unwritten());
        let entries = self.entries().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the pending post hooks");
            let unwritten = self.unwritten.lock().clone();
            let readable = unwritten.into_iter().filter_map(|(key, change)| Some((key, change.post_hooks?)));
            Pending { readable: readable.collect(), ..Pending::default() }
        });
        if round.is_multiple_of(DAILY_INTERVAL) {
            for (key, reason) in &entries.unreadable {
                tracing::error!(%key, reason, "unreadable record of pending post hooks: a guest may still be frozen");
            }
        }
        let is_due = |post_hooks: &PendingPostHooks| {
            post_hooks.attempts > 0 && (post_hooks.attempts <= MINUTELY_RETRIES || round.is_multiple_of(DAILY_INTERVAL))
        };
        let mut calls = Calls::default();
        for (vm, entries) in by_vm(entries.readable.into_iter().filter(|(_, post_hooks)| is_due(post_hooks))) {
            let pending = Arc::clone(self);
            let call = async move {
                // Locked here, so that a hung repository delays only this VM.
                let Some(_guard) = pending.lock_vm(&vm, &entries, LockMode::THAW_NOW).await else { return };
                let mut writes = Writes::default();
                for (key, post_hooks) in entries {
                    // They may have been called meanwhile.
                    match pending.entries() {
                        Ok(entries) if !entries.readable.contains(&(key, post_hooks.clone())) => {}
                        _ => pending.call_again(key, post_hooks, &mut writes).await,
                    }
                }
                writes.finish().await;
            };
            calls.start(call).await;
        }
        calls.finish().await;
        writes.finish().await;
    }

    /// Waits until no operation can hold a guest frozen, within a bounded time. Returns how many operations still have
    /// pending post hooks.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn release_guests(self: &Arc<Self>) -> Result<usize, Error> {
        self.active.close();
        let max_wait = self.hooks.max_frozen_duration();
        if !self.active.is_empty() {
            tracing::warn!(seconds = max_wait.as_secs(), "a guest may be frozen; waiting for its post hooks");
            if tokio::time::timeout(max_wait, self.active.wait()).await.is_err() {
                tracing::error!("post hooks did not finish in time; the next start calls them");
            }
        }
        let pending = tokio::time::timeout(FINAL_READ_TIMEOUT, self.write_and_read()).await;
        let pending =
            pending.unwrap_or_else(|_| Err(Error::Internal("reading the pending post hooks took too long".to_owned())));
        Ok(pending?.readable.len())
    }

    /// Writes unwritten changes, then returns all pending post hooks. Runs on its own thread, because the pool of
    /// blocking threads may be used up.
    async fn write_and_read(self: &Arc<Self>) -> Result<Pending, Error> {
        let pending = Arc::clone(self);
        let read = async move {
            pending.write_unwritten();
            pending.entries()
        };
        let found = run_isolated(read).map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
        found.await.unwrap_or_else(|_| {
            Err(Error::Internal("the thread that reads the pending post hooks panicked".to_owned()))
        })
    }
}
