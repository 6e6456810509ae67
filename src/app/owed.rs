//! `post` hooks that are owed: called at the start after a crash, and again where they failed.
//!
//! What a `pre` has frozen something must thaw. So what is owed stays written down until it was called and
//! did what it should, or until nobody can hope for that any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::vm_turn::Turn;
use super::{App, Error};
use crate::hooks::{Debt, Operation, Owed};
use crate::model::{SnapshotId, VmId};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// As often in vain, it is tried each round: an hour.
const OFTEN: u32 = 60;

/// After that once in as many rounds: a day. And at each start.
const SELDOM: u64 = 24 * 60;

/// As often in vain, it is given up: a week later.
const GIVEN_UP: u32 = OFTEN + 7;

/// How long the start waits for another service that has locked a VM whose hooks are owed.
const THAW_WAIT: Duration = Duration::from_secs(20);

/// How long the database may take to say what is owed, when the service stops.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Under which number the debt of an `operation` on the snapshot `id` is written down. A snapshot that is
/// deleted may be owed something still since it was made: so that of a deletion has another version of UUID,
/// which no id has that we give.
pub(super) fn key(operation: Operation, id: SnapshotId) -> SnapshotId {
    match operation {
        Operation::SnapshotCreate => id,
        Operation::SnapshotDelete => SnapshotId::from_u128(id.as_u128() ^ (1 << 76)),
    }
}

impl App {
    /// What is written down, with its key. What cannot be read is told, and forgotten.
    fn debts(&self) -> Result<Vec<(SnapshotId, Debt)>, Error> {
        let mut debts = Vec::new();
        for (key, written) in self.store.owed()? {
            match Debt::from_bytes(&written) {
                Ok(debt) => debts.push((key, debt)),
                Err(error) => {
                    tracing::error!(%key, %error, "what hooks it owes cannot be read");
                    self.settle(key);
                }
            }
        }
        Ok(debts)
    }

    /// Programs that an earlier operation with this key owes.
    pub(super) fn owed_earlier(&self, key: SnapshotId) -> Result<Vec<std::ffi::OsString>, Error> {
        let earlier = self.debts()?.into_iter().find(|(other, _)| *other == key);
        Ok(earlier.and_then(|(_, debt)| debt.owed).map(|owed| owed.programs).unwrap_or_default())
    }

    /// Notes that nothing is owed any more.
    pub(super) fn settle(&self, key: SnapshotId) {
        if let Err(error) = self.store.settle(key) {
            tracing::error!(%key, %error, "its post hooks will be called again by the next start");
        }
    }

    /// Writes down what is `left` of a debt, after its second half was called.
    pub(super) async fn enter(self: &Arc<Self>, key: SnapshotId, debt: Debt, left: Option<Owed>) {
        let entered = self.blocking(move |app| {
            let (snapshot, vm) = (debt.event.snapshot_id.clone(), debt.event.vm.name.clone());
            if left.as_ref().is_some_and(Owed::is_nothing) {
                app.settle(key);
                return Ok(());
            }
            let debt = Debt { owed: left, earlier: Vec::new(), attempts: debt.attempts + 1, ..debt };
            let (attempts, owed) = (debt.attempts, &debt.owed);
            if attempts > GIVEN_UP {
                tracing::error!(snapshot, vm, attempts, ?owed, "post hooks have failed for a week: they are given up");
                app.settle(key);
                return Ok(());
            }
            let next = if attempts <= OFTEN { "in a minute" } else { "in a day, and at the next start" };
            tracing::error!(snapshot, vm, attempts, ?owed, next, "post hooks have failed, and will be called again");
            if let Err(error) = app.store.owe(key, &debt.to_bytes()) {
                tracing::error!(snapshot, vm, %error, "what is owed cannot be written down");
            }
            Ok(())
        });
        // Its errors are told already.
        drop(entered.await);
    }

    /// Locks the VM whose hooks are owed; nothing where somebody else changes its snapshots.
    async fn lock_for_debt(self: &Arc<Self>, debt: &Debt, wait: Duration) -> Option<Turn> {
        let vm: VmId = debt.event.vm.name.parse().ok()?;
        let own = self.turns.try_take(&vm)?;
        let paths: Vec<_> = debt.event.disks.iter().map(|disk| disk.path.clone().into()).collect();
        let turn = self.lock_vm(own, &vm, self.repositories_at(&paths), wait).await;
        turn.inspect_err(|error| tracing::warn!(%vm, %error, "post hooks are owed, and the VM is locked")).ok()
    }

    async fn call_again(self: &Arc<Self>, key: SnapshotId, debt: Debt) {
        let _held = self.held.token();
        let ended = self.hooks.again(&debt).await;
        self.metrics.hooks(debt.event.operation.as_str(), &ended.runs);
        self.enter(key, debt, ended.left).await;
    }

    /// Calls what was owed when the service stopped. What it was stopped in is undone later.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub(super) async fn call_owed_hooks(self: &Arc<Self>) -> Result<(), Error> {
        let debts = self.blocking(|app| app.debts()).await?;
        // What has failed before does not hold up the start: its next round is at once.
        for (key, debt) in debts.into_iter().filter(|(_, debt)| debt.attempts == 0) {
            let (snapshot, vm, operation) =
                (&debt.event.snapshot_id, &debt.event.vm.name, debt.event.operation.as_str());
            tracing::warn!(snapshot, vm, operation, "stopped before its post hooks were called");
            // What this service froze before may be frozen by another one now, for a snapshot that must not see a
            // thaw. It thaws it soon; but a guest is not left frozen for it.
            let _turn = self.lock_for_debt(&debt, THAW_WAIT).await;
            self.call_again(key, debt).await;
        }
        Ok(())
    }

    /// Calls what has failed now and then, until `stop`.
    pub async fn call_owed_until(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = tokio::time::interval(INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
    }

    /// One round. A VM whose snapshots are being changed comes in the next: its guest may be frozen for them.
    pub(super) async fn call_failed(self: &Arc<Self>, round: u64) {
        let debts = match self.blocking(|app| app.debts()).await {
            Ok(debts) => debts,
            Err(error) => return tracing::error!(%error, "post hooks that failed are not called again"),
        };
        for (key, debt) in debts {
            let due = debt.attempts > 0 && (debt.attempts <= OFTEN || round.is_multiple_of(SELDOM));
            if !due {
                continue;
            }
            let Some(turn) = self.lock_for_debt(&debt, Duration::ZERO).await else { continue };
            let app = Arc::clone(self);
            let called = self.detached(async move {
                let _turn = turn;
                // It may have been settled meanwhile.
                if app.blocking(move |app| app.debts()).await?.contains(&(key, debt.clone())) {
                    app.call_again(key, debt).await;
                }
                Ok(())
            });
            if let Err(error) = called.await {
                tracing::error!(%key, %error, "post hooks that failed were not called again");
            }
        }
    }

    /// Waits until nothing is held by hooks any more, as long as that may take at most. Says for how many
    /// operations something is owed all the same.
    ///
    /// # Errors
    /// Where the database does not say so.
    pub async fn let_go(self: &Arc<Self>) -> Result<usize, Error> {
        self.held.close();
        let longest = self.hooks.longest_end();
        if !self.held.is_empty() {
            tracing::warn!(seconds = longest.as_secs(), "a guest may be frozen: its post hooks are waited for");
            if tokio::time::timeout(longest, self.held.wait()).await.is_err() {
                tracing::error!("post hooks were not over in time; the next start calls them");
            }
        }
        let owed = tokio::time::timeout(LAST_LOOK, self.blocking(|app| Ok(app.store.owed()?.len()))).await;
        owed.unwrap_or_else(|_| Err(Error::Internal("the database does not say what is owed".to_owned())))
    }
}
