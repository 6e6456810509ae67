//! Hooks around an operation: before it, and after it whatever becomes of it.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::pending::PendingHooks;
use crate::app::Error;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks};
use crate::hooks::{self, Event, EventDisk, EventVm, Hooks, Operation, PendingPostHooks, PostResult, Refresh};
use crate::inventory;
use crate::metrics::Metrics;
use crate::model::{DiskName, DiskSource, HookRun, PendingHooksKey, Snapshot, SnapshotId, VmId};

/// What was called around an operation.
#[derive(Default)]
pub(crate) struct HookReport {
    /// The calls, in their order.
    pub runs: Vec<HookRun>,
    /// Whether something has put the guest's disks in order, and kept them so.
    pub quiesced: bool,
    /// From the first call that may have held up the guest to the end of the last, where there was one.
    pub held: Option<Duration>,
    /// Hooks whose `post` was not called because the config says so.
    not_called: Vec<String>,
}

impl HookReport {
    /// The `error` of the operation, with what the hooks did not do after it.
    pub(crate) fn beside(&self, error: Error) -> Error {
        if self.not_called.is_empty() {
            return error;
        }
        Error::PostHooksSkipped { error: Box::new(error), hooks: self.not_called.join(", ") }
    }
}

/// What blocks.
type Step<T> = Box<dyn FnOnce() -> T + Send>;

/// What is done between the two halves.
pub(crate) struct GuardedStep<T> {
    pub work: Step<Result<T, Error>>,
    /// What is done once more before another attempt to quiesce.
    pub refresh: Refresh,
    /// What is done when the work ends after it was given up; nothing: it is waited for.
    pub on_late_completion: Option<Step<()>>,
}

/// Runs operations between the two halves of their hooks.
pub(crate) struct HookRunner {
    pub hooks: Arc<Hooks>,
    pub pending: Arc<PendingHooks>,
    inventory: Arc<Inventory>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Service for HookRunner {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl HookRunner {
    pub(crate) fn new(
        pending: Arc<PendingHooks>,
        inventory: Arc<Inventory>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Self {
        Self { hooks: Arc::clone(&pending.hooks), pending, inventory, metrics, tasks }
    }

    /// Does the work between the two halves of its hooks, where there are any: then what they owe is written
    /// down by now, under a key. There is no way out of here, once the first is called, but through the
    /// second: not by an error, not by a panic, not by a file system that hangs. A crash leaves it owed.
    ///
    /// All of it runs on threads of its own: nothing that blocks the service's runtime, or its pool of threads,
    /// keeps anything frozen.
    pub(crate) async fn with_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        debt: Option<(PendingHooksKey, PendingPostHooks)>,
        between: GuardedStep<T>,
    ) -> (Result<T, Error>, HookReport) {
        let Some((key, debt)) = debt else { return (self.tasks.blocking(between.work).await, HookReport::default()) };
        let (runner, held) = (Arc::clone(self), self.pending.hold());
        let around = async move {
            let _held = held;
            runner.call_around(key, debt, between).await
        };
        match hooks::run_isolated(around) {
            Ok(ended) => ended.await.unwrap_or_else(|_| {
                (Err(Error::Internal("the thread of its hooks panicked".to_owned())), HookReport::default())
            }),
            Err(error) => {
                // Nothing was called.
                let noted = self.blocking(move |runner| {
                    runner.pending.note(key, None);
                    Ok(())
                });
                drop(noted.await);
                let error = Error::Internal(format!("no thread can be started for its hooks: {error}"));
                (Err(error), HookReport::default())
            }
        }
    }

    async fn call_around<T: Send + 'static>(
        self: &Arc<Self>,
        key: PendingHooksKey,
        debt: PendingPostHooks,
        between: GuardedStep<T>,
    ) -> (Result<T, Error>, HookReport) {
        let GuardedStep { work, refresh, on_late_completion } = between;
        let debt = Arc::new(debt);
        let (runner, told) = (Arc::clone(self), Arc::clone(&debt));
        let before = tokio::spawn(async move { runner.hooks.call_pre(&told, &refresh).await }.in_current_span()).await;
        let (begun, outcome) = match before {
            Ok(begun) => {
                let refused = begun.refusal.as_ref().map(|run| Error::HookFailed {
                    hook: run.name.clone(),
                    operation: debt.event.operation.as_str(),
                    how: run.detail.clone(),
                });
                (Some(begun), refused.map_or(Ok(()), Err))
            }
            Err(panic) => (None, Err(Error::Internal(panic.to_string()))),
        };
        let outcome = match outcome {
            Err(error) => Err(error),
            Ok(()) => self.run_on_new_thread(work, on_late_completion).await,
        };
        let (done, since) = (outcome.is_ok(), begun.as_ref().and_then(|begun| begun.since));
        let (runner, told) = (Arc::clone(self), Arc::clone(&debt));
        let after = async move {
            match begun {
                Some(begun) => runner.hooks.call_post(&told, begun, done).await,
                None => runner.hooks.call_pending(&told).await,
            }
        };
        let after = tokio::spawn(after.in_current_span()).await;
        let held = since.map(|since| since.elapsed());
        let ended = after.unwrap_or_else(|panic| {
            tracing::error!(%panic, "the hooks after the operation were not all called");
            PostResult { failed: debt.hooks.clone(), ..PostResult::default() }
        });
        self.metrics.hooks(debt.event.operation.as_str(), &ended.runs);
        self.pending.enter(
            key,
            PendingPostHooks { succeeded: done, finished: ended.finished, ..PendingPostHooks::clone(&debt) },
            ended.failed,
        );
        let PostResult { runs, quiesced, not_called, .. } = ended;
        (outcome, HookReport { runs, quiesced, held, not_called })
    }

    /// Does `work` on a thread of its own, so that it waits for nobody's. With `on_late_completion`, it is given up where it
    /// takes longer than something may be held for it: a file system that hangs lets go of no thread. What it
    /// comes to then is for `on_late_completion`, on the same thread; nobody waits for that, not even the service's end: then
    /// the next start does what is to be done.
    async fn run_on_new_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: Step<Result<T, Error>>,
        on_late_completion: Option<Step<()>>,
    ) -> Result<T, Error> {
        let patience = on_late_completion.is_some().then(|| self.hooks.step_timeout());
        let span = tracing::Span::current();
        let (done, mut ended) = tokio::sync::oneshot::channel();
        let work = move || {
            let _entered = span.entered();
            let outcome = panic::catch_unwind(AssertUnwindSafe(work));
            let outcome = outcome.unwrap_or_else(|_| Err(Error::Internal("its thread panicked".to_owned())));
            if let (Err(outcome), Some(on_late_completion)) = (done.send(outcome), on_late_completion) {
                drop(outcome);
                on_late_completion();
            }
        };
        let started = std::thread::Builder::new().name("at-once".to_owned()).spawn(work);
        started.map_err(|error| Error::Internal(format!("no thread can be started: {error}")))?;
        let lost = || Err(Error::Internal("its thread has ended".to_owned()));
        let Some(patience) = patience else { return ended.await.unwrap_or_else(|_| lost()) };
        if let Ok(outcome) = tokio::time::timeout(patience, &mut ended).await {
            return outcome.unwrap_or_else(|_| lost());
        }
        // From here on it is late. What was sent just before is not.
        ended.close();
        ended.try_recv().unwrap_or(Err(Error::CloneTimeout { seconds: patience.as_secs_f64() }))
    }

    /// What hooks read about an `operation` on the snapshot `id` of `vm_id`, whose disks have these names, sources
    /// and sizes; `vm` is the VM's definition, if it is still in the inventory.
    pub(crate) fn event<'a>(
        &self,
        operation: Operation,
        (id, vm_id): (SnapshotId, &VmId),
        disks: impl Iterator<Item = (&'a DiskName, &'a DiskSource, u64)>,
        vm: Option<&inventory::Vm>,
    ) -> Event {
        let disks = disks.filter_map(|(name, source, size)| {
            let repository = self.inventory.repository(&source.repository)?;
            Some(EventDisk {
                name: name.to_string(),
                path: repository.mount_point().join(&source.path).display().to_string(),
                snapshot_path: repository.snapshot_path(id, name).display().to_string(),
                size,
            })
        });
        let sync = match (operation, vm) {
            (Operation::SnapshotCreate, Some(vm)) => {
                let address = vm.addresses.first().map(String::as_str);
                self.hooks.sync_target(vm_id, &[&vm.description, &vm.friendly_name], address)
            }
            _ => None,
        };
        Event {
            operation,
            snapshot_id: id.to_string(),
            vm: EventVm {
                name: vm_id.to_string(),
                uuid: vm.and_then(|vm| vm.uuid.clone()).unwrap_or_else(|| vm_id.dashed()),
                friendly_name: vm.map(|vm| vm.friendly_name.clone()).unwrap_or_default(),
            },
            disks: disks.collect(),
            sync,
        }
    }

    /// What hooks are told of a deletion. A VM that has left the inventory is told by its id.
    pub(crate) fn deletion(&self, snapshot: &Snapshot) -> Event {
        let vm = self.inventory.find_vm(&snapshot.vm).ok().map(|(_, vm)| vm);
        let disks = snapshot.disks.iter().map(|disk| (&disk.name, &disk.source, disk.identity.size));
        self.event(Operation::SnapshotDelete, (snapshot.id, &snapshot.vm), disks, vm.as_deref())
    }
}

#[cfg(test)]
mod tests;
