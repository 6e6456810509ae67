//! `post` hooks that are owed: called at the start after a crash, and again where they failed.
//!
//! What a `pre` has frozen something must thaw. So what is owed stays written down until it was called and
//! did what it should, or until nobody can hope for that any more.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::Error;
use crate::app::admission::{LockMode, VmGuard, VmLocks};
use crate::app::inventory::Inventory;
use crate::app::tasks::rounds;
use crate::hooks::{Hooks, Operation, PendingHooks as FailedHooks, PendingPostHooks, run_isolated};
use crate::metrics::Metrics;
use crate::model::{PendingHooksKey, SnapshotId, VmId};
use crate::store::Store;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// As often in vain, it is tried each round: an hour.
const MINUTELY_RETRIES: u32 = 60;

/// After that once in as many rounds: a day. And at each start.
const DAILY_INTERVAL: u64 = 24 * 60;

/// As often in vain, it is given up: a week later.
const MAX_RETRIES: u32 = MINUTELY_RETRIES + 7;

/// VMs whose hooks are called again at a time: one whose hooks hang must not hold up all others.
const AT_ONCE: usize = 8;

/// How long the database may take to say what is owed, when the service stops.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// What the database would not take, by key: the debt, or that nothing is owed any more. It is tried again each
/// round. Until then this counts, and not what is written down.
#[derive(Default)]
pub(super) struct Unwritten(Mutex<HashMap<PendingHooksKey, Option<PendingPostHooks>>>);

impl Unwritten {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<PendingHooksKey, Option<PendingPostHooks>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls that are made at the same time, [`AT_ONCE`] at most, each on a thread of its own.
#[derive(Default)]
struct Calls(JoinSet<()>);

impl Calls {
    /// Begins a call, once there is a place for it.
    async fn begin(&mut self, call: impl Future<Output = ()> + Send + 'static) {
        while self.0.len() >= AT_ONCE {
            self.0.join_next().await;
        }
        match run_isolated(call) {
            Ok(over) => drop(self.0.spawn(async move { drop(over.await) })),
            Err(error) => tracing::error!(%error, "no thread can be started for hooks that are owed"),
        }
    }

    /// Waits for all of them.
    async fn end(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// What is owed.
#[derive(Default)]
pub(crate) struct Pending {
    /// With their keys.
    pub readable: Vec<(PendingHooksKey, PendingPostHooks)>,
    /// What is written down and cannot be read, by key, with the reason. It stays written down: a newer version
    /// may have written it.
    pub unreadable: Vec<(PendingHooksKey, String)>,
}

/// By the names of their VMs: what is owed to one guest is called one after the other.
fn by_vm(
    debts: impl Iterator<Item = (PendingHooksKey, PendingPostHooks)>,
) -> BTreeMap<String, Vec<(PendingHooksKey, PendingPostHooks)>> {
    let mut by_vm: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, debt) in debts {
        by_vm.entry(debt.event.vm.name.clone()).or_default().push((key, debt));
    }
    by_vm
}

/// The `post` hooks that are still to be called.
pub(crate) struct PendingHooks {
    pub(super) hooks: Arc<Hooks>,
    store: Store,
    pub(super) unwritten: Unwritten,
    /// Operations between their `pre` and the end of their `post`: their guests may be frozen.
    active: TaskTracker,
    vm_locks: Arc<VmLocks>,
    inventory: Arc<Inventory>,
    metrics: Arc<Metrics>,
}

impl PendingHooks {
    pub(crate) fn new(
        hooks: Hooks,
        store: Store,
        vm_locks: Arc<VmLocks>,
        inventory: Arc<Inventory>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (hooks, unwritten, active) = (Arc::new(hooks), Unwritten::default(), TaskTracker::new());
        Self { hooks, store, unwritten, active, vm_locks, inventory, metrics }
    }

    /// Marks an operation as one whose guest may be frozen, until the token is dropped.
    pub(super) fn hold(&self) -> TaskTrackerToken {
        self.active.token()
    }

    /// What is owed.
    ///
    /// # Errors
    /// Where the database does not say.
    pub(crate) fn debts(&self) -> Result<Pending, Error> {
        let unwritten = self.unwritten.lock().clone();
        let mut debts = Pending::default();
        for (key, written) in self.store.pending_hooks().all()? {
            match PendingPostHooks::from_bytes(&written) {
                _ if unwritten.contains_key(&key) => {}
                Ok(debt) => debts.readable.push((key, debt)),
                Err(error) => debts.unreadable.push((key, error.to_string())),
            }
        }
        debts.readable.extend(unwritten.into_iter().filter_map(|(key, debt)| Some((key, debt?))));
        Ok(debts)
    }

    /// Writes down what is owed for an operation that is about to begin.
    ///
    /// # Errors
    /// Where that is not possible; then no hook may be called.
    pub(crate) fn record_pending_hooks(&self, key: PendingHooksKey, debt: &PendingPostHooks) -> Result<(), Error> {
        let bytes = debt.to_bytes().map_err(|error| Error::Internal(format!("what hooks owe: {error}")))?;
        Ok(self.store.pending_hooks().record(key, &bytes)?)
    }

    /// The key for what an `operation` on the snapshot `id` is going to owe, with the programs that an earlier one
    /// of the kind owes.
    pub(crate) fn owed_earlier(
        &self,
        operation: Operation,
        id: SnapshotId,
    ) -> Result<(PendingHooksKey, Vec<OsString>), Error> {
        let (key, debts) = (operation.pending_hooks_key(id), self.debts()?);
        if debts.unreadable.iter().any(|(other, _)| *other == key) {
            // What cannot be read is not written over.
            let free = SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128());
            return Ok((operation.pending_hooks_key(free), Vec::new()));
        }
        let earlier = debts.readable.into_iter().find(|(other, _)| *other == key);
        Ok((key, earlier.and_then(|(_, debt)| debt.hooks).map(|hooks| hooks.programs).unwrap_or_default()))
    }

    /// Writes down what is owed after an operation, or that nothing is. What the database does not take is kept,
    /// and tried again.
    pub(crate) fn note(&self, key: PendingHooksKey, debt: Option<PendingPostHooks>) {
        // Held while it is written, so that what is newer is written later.
        let mut unwritten = self.unwritten.lock();
        self.note_in(&mut unwritten, key, debt);
    }

    fn note_in(
        &self,
        unwritten: &mut HashMap<PendingHooksKey, Option<PendingPostHooks>>,
        key: PendingHooksKey,
        debt: Option<PendingPostHooks>,
    ) {
        let written = match &debt {
            Some(debt) => self.record_pending_hooks(key, debt),
            None => self.store.pending_hooks().clear(key).map_err(Error::from),
        };
        match written {
            Ok(()) => {
                unwritten.remove(&key);
            }
            Err(error) => {
                let cause = error.hidden_cause().unwrap_or_default();
                tracing::error!(%key, %error, cause, "what hooks owe cannot be written down; it is tried again");
                unwritten.insert(key, debt);
            }
        }
    }

    fn write_unwritten(&self) {
        let mut unwritten = self.unwritten.lock();
        for (key, debt) in unwritten.clone() {
            self.note_in(&mut unwritten, key, debt);
        }
    }

    /// Writes down what is `left` of a debt, after its second half was called.
    pub(crate) fn enter(&self, key: PendingHooksKey, debt: PendingPostHooks, left: Option<FailedHooks>) {
        let (snapshot, vm) = (debt.event.snapshot_id.clone(), debt.event.vm.name.clone());
        if left.as_ref().is_some_and(FailedHooks::is_empty) {
            return self.note(key, None);
        }
        let debt = PendingPostHooks { hooks: left, earlier: Vec::new(), attempts: debt.attempts + 1, ..debt };
        let (attempts, owed) = (debt.attempts, &debt.hooks);
        if attempts > MAX_RETRIES {
            tracing::error!(snapshot, vm, attempts, ?owed, "post hooks have failed for a week: they are given up");
            return self.note(key, None);
        }
        let next = if attempts <= MINUTELY_RETRIES { "in a minute" } else { "in a day, and at the next start" };
        tracing::error!(snapshot, vm, attempts, ?owed, next, "post hooks have failed, and will be called again");
        self.note(key, Some(debt));
    }

    /// Locks the VM whose hooks are owed; nothing where somebody in this service, or in another one,
    /// changes its snapshots.
    async fn lock_for_debts(
        self: &Arc<Self>,
        vm: &str,
        debts: &[(PendingHooksKey, PendingPostHooks)],
        how: LockMode,
    ) -> Option<VmGuard> {
        let vm: VmId = vm.parse().ok()?;
        let own = self.vm_locks.try_take(&vm)?;
        let disks = debts.iter().flat_map(|(_, debt)| &debt.event.disks);
        let paths: Vec<_> = disks.map(|disk| disk.path.clone().into()).collect();
        let turn = self.vm_locks.lock(own, &vm, self.inventory.repositories_at(&paths), how).await;
        turn.inspect_err(|error| tracing::warn!(%vm, %error, "post hooks are owed, and the VM is locked")).ok()
    }

    async fn call_again(&self, key: PendingHooksKey, debt: PendingPostHooks) {
        let _held = self.active.token();
        let ended = self.hooks.call_pending(&debt).await;
        self.metrics.hooks(debt.event.operation.as_str(), &ended.runs);
        self.enter(key, PendingPostHooks { finished: ended.finished, ..debt }, ended.failed);
    }

    /// Calls what was owed when the service stopped. What it was stopped in is undone later.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub(crate) async fn call_after_start(self: &Arc<Self>) -> Result<(), Error> {
        let debts = self.debts_now().await?;
        // What has failed before does not hold up the start: its next round is at once.
        let mut calls = Calls::default();
        for (vm, debts) in by_vm(debts.readable.into_iter().filter(|(_, debt)| debt.attempts == 0)) {
            let pending = Arc::clone(self);
            let call = async move {
                for (_, debt) in &debts {
                    let (snapshot, vm, operation) =
                        (&debt.event.snapshot_id, &debt.event.vm.name, debt.event.operation.as_str());
                    tracing::warn!(snapshot, vm, operation, "stopped before its post hooks were called");
                }
                // What this service froze may be frozen by another one now, for a snapshot that must not see a
                // thaw; that one thaws it soon. But a guest is not left frozen for it.
                let _turn = pending.lock_for_debts(&vm, &debts, LockMode::THAW).await;
                for (key, debt) in debts {
                    pending.call_again(key, debt).await;
                }
            };
            calls.begin(call).await;
        }
        calls.end().await;
        Ok(())
    }

    /// Calls what has failed now and then, until `stop`. All of it runs on threads of its own, as what stands
    /// between two hooks does.
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
            Err(error) => tracing::error!(%error, "post hooks that fail are not called again before the next start"),
        }
    }

    /// One round. A VM whose snapshots are being changed comes in the next: its guest may be frozen for them.
    pub(crate) async fn call_failed(self: &Arc<Self>, round: u64) {
        self.write_unwritten();
        let debts = self.debts().unwrap_or_else(|error| {
            tracing::error!(%error, "which post hooks have failed is not known");
            let unwritten = self.unwritten.lock().clone();
            let readable = unwritten.into_iter().filter_map(|(key, debt)| Some((key, debt?)));
            Pending { readable: readable.collect(), ..Pending::default() }
        });
        if round.is_multiple_of(DAILY_INTERVAL) {
            for (key, reason) in &debts.unreadable {
                tracing::error!(%key, reason, "what hooks owe cannot be read: something may be frozen still");
            }
        }
        let is_due = |debt: &PendingPostHooks| {
            debt.attempts > 0 && (debt.attempts <= MINUTELY_RETRIES || round.is_multiple_of(DAILY_INTERVAL))
        };
        let mut calls = Calls::default();
        for (vm, debts) in by_vm(debts.readable.into_iter().filter(|(_, debt)| is_due(debt))) {
            let pending = Arc::clone(self);
            let call = async move {
                // Here, so that a repository that hangs holds up this VM alone.
                let Some(_turn) = pending.lock_for_debts(&vm, &debts, LockMode::THAW_NOW).await else { return };
                for (key, debt) in debts {
                    // It may have been settled meanwhile.
                    match pending.debts() {
                        Ok(debts) if !debts.readable.contains(&(key, debt.clone())) => {}
                        _ => pending.call_again(key, debt).await,
                    }
                }
            };
            calls.begin(call).await;
        }
        calls.end().await;
    }

    /// Waits until nothing is held by hooks any more, as long as that may take at most. Says for how many
    /// operations something is owed all the same.
    ///
    /// # Errors
    /// Where the database does not say so.
    pub(crate) async fn release_guests(self: &Arc<Self>) -> Result<usize, Error> {
        self.active.close();
        let longest = self.hooks.max_frozen_duration();
        if !self.active.is_empty() {
            tracing::warn!(seconds = longest.as_secs(), "a guest may be frozen: its post hooks are waited for");
            if tokio::time::timeout(longest, self.active.wait()).await.is_err() {
                tracing::error!("post hooks were not over in time; the next start calls them");
            }
        }
        let owed = tokio::time::timeout(LAST_LOOK, self.debts_now()).await;
        let owed = owed.unwrap_or_else(|_| Err(Error::Internal("the database does not say what is owed".to_owned())));
        Ok(owed?.readable.len())
    }

    /// What is owed, with all that was not written down yet written: on a thread of its own, since the pool of
    /// blocking threads may be used up.
    async fn debts_now(self: &Arc<Self>) -> Result<Pending, Error> {
        let pending = Arc::clone(self);
        let look = async move {
            pending.write_unwritten();
            pending.debts()
        };
        let found =
            run_isolated(look).map_err(|error| Error::Internal(format!("no thread can be started: {error}")))?;
        found.await.unwrap_or_else(|_| Err(Error::Internal("what is owed: its thread panicked".to_owned())))
    }
}
