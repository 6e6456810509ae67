//! Runs an operation with its hooks: `pre` before it, and `post` after it in every case.

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
use crate::model::{DiskName, DiskSource, HookOutcome, HookRun, PendingHooksKey, Snapshot, SnapshotId, VmId};

/// The hook calls of an operation.
#[derive(Default)]
pub(crate) struct HookReport {
    pub runs: Vec<HookRun>,
    /// Whether a hook has quiesced the guest.
    pub quiesced: bool,
    /// The time from the first call that may have frozen the guest to the end of the last call.
    pub frozen_for: Option<Duration>,
    /// Hooks whose `post` was not called because the config says so.
    not_called: Vec<String>,
}

impl HookReport {
    /// Adds the skipped `post` hooks to the `error` of the operation.
    pub(crate) fn with_skipped_hooks(&self, error: Error) -> Error {
        if self.not_called.is_empty() {
            return error;
        }
        Error::PostHooksSkipped { error: Box::new(error), hooks: self.not_called.join(", ") }
    }
}

/// Work that blocks.
type Step<T> = Box<dyn FnOnce() -> T + Send>;

/// The work between the `pre` and the `post` hooks.
pub(crate) struct GuardedStep<T> {
    pub work: Step<Result<T, Error>>,
    /// Runs again before each further attempt to quiesce.
    pub refresh: Refresh,
    /// Runs if the work ends after its timeout. Without it, there is no timeout.
    pub on_late_completion: Option<Step<()>>,
    /// Whether the operation fails if no hook quiesces the guest: before the work if that is known then.
    pub requires_quiesced: bool,
}

/// Runs operations with their hooks.
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

    /// Does the work of `step` with its hooks, if there are any. The caller has already recorded them as pending under
    /// their key. Once `pre` was called, `post` is called in every case: after an error, a panic, or a timeout because
    /// a file system hangs. After a crash, the post hooks are still pending.
    ///
    /// Everything runs on its own threads, so that a blocked runtime or thread pool cannot keep a guest frozen.
    pub(crate) async fn with_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        post_hooks: Option<(PendingHooksKey, PendingPostHooks)>,
        step: GuardedStep<T>,
    ) -> (Result<T, Error>, HookReport) {
        let Some((key, post_hooks)) = post_hooks else {
            return (self.tasks.blocking(step.work).await, HookReport::default());
        };
        let (runner, active) = (Arc::clone(self), self.pending.hold());
        let operation = async move {
            let _active = active;
            runner.run_with_hooks(key, post_hooks, step).await
        };
        match hooks::run_isolated(operation) {
            Ok(ended) => ended.await.unwrap_or_else(|_| {
                (Err(Error::Internal("the thread of the operation's hooks panicked".to_owned())), HookReport::default())
            }),
            Err(error) => {
                // No hook was called.
                let cleared = self.blocking(move |runner| {
                    runner.pending.set(key, None);
                    Ok(())
                });
                drop(cleared.await);
                let error = Error::Internal(format!("cannot start a thread for the operation's hooks: {error}"));
                (Err(error), HookReport::default())
            }
        }
    }

    async fn run_with_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        key: PendingHooksKey,
        post_hooks: PendingPostHooks,
        step: GuardedStep<T>,
    ) -> (Result<T, Error>, HookReport) {
        let GuardedStep { work, refresh, on_late_completion, requires_quiesced } = step;
        let post_hooks = Arc::new(post_hooks);
        let (runner, shared) = (Arc::clone(self), Arc::clone(&post_hooks));
        let before =
            tokio::spawn(async move { runner.hooks.call_pre(&shared, &refresh).await }.in_current_span()).await;
        let (pre, outcome) = match before {
            Ok(pre) => {
                let refused = pre.refusal.as_ref().map(|run| Error::HookFailed {
                    hook: run.name.clone(),
                    operation: post_hooks.event.operation.as_str(),
                    how: run.detail.clone(),
                });
                let not_quiesced = || (requires_quiesced && !pre.quiesced).then(|| not_quiesced(pre.runs()));
                let obstacle = refused.or_else(not_quiesced);
                (Some(pre), obstacle.map_or(Ok(()), Err))
            }
            Err(panic) => (None, Err(Error::Internal(panic.to_string()))),
        };
        let outcome = match outcome {
            Err(error) => Err(error),
            Ok(()) => self.run_on_new_thread(work, on_late_completion).await,
        };
        let (done, since) = (outcome.is_ok(), pre.as_ref().and_then(|pre| pre.since));
        let (runner, shared) = (Arc::clone(self), Arc::clone(&post_hooks));
        let after = async move {
            match pre {
                Some(pre) => runner.hooks.call_post(&shared, pre, done).await,
                None => runner.hooks.call_pending(&shared).await,
            }
        };
        let after = tokio::spawn(after.in_current_span()).await;
        let frozen_for = since.map(|since| since.elapsed());
        let ended = after.unwrap_or_else(|panic| {
            tracing::error!(%panic, "not all post hooks were called");
            PostResult { failed: post_hooks.hooks.clone(), ..PostResult::default() }
        });
        self.metrics.hooks(post_hooks.event.operation.as_str(), &ended.runs);
        self.pending.record_result(
            key,
            PendingPostHooks { succeeded: done, finished: ended.finished, ..PendingPostHooks::clone(&post_hooks) },
            ended.failed,
        );
        let PostResult { runs, quiesced, not_called, .. } = ended;
        // A post hook has failed, so the freeze may have ended before the disks were cloned.
        let outcome = if done && requires_quiesced && !quiesced { Err(not_quiesced(&runs)) } else { outcome };
        (outcome, HookReport { runs, quiesced, frozen_for, not_called })
    }

    /// Does `work` on its own thread, so that it does not wait for a free one. With `on_late_completion`, waiting ends
    /// after the longest time that a guest may be frozen; the thread stays, as a hung file system blocks it. When the
    /// work ends later, that thread runs `on_late_completion`. The end of the service does not wait for it; the next
    /// start cleans up instead.
    async fn run_on_new_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: Step<Result<T, Error>>,
        on_late_completion: Option<Step<()>>,
    ) -> Result<T, Error> {
        let timeout = on_late_completion.is_some().then(|| self.hooks.step_timeout());
        let span = tracing::Span::current();
        let (done, mut ended) = tokio::sync::oneshot::channel();
        let work = move || {
            let _entered = span.entered();
            let outcome = panic::catch_unwind(AssertUnwindSafe(work));
            let outcome =
                outcome.unwrap_or_else(|_| Err(Error::Internal("the thread of the operation panicked".to_owned())));
            if let (Err(outcome), Some(on_late_completion)) = (done.send(outcome), on_late_completion) {
                drop(outcome);
                on_late_completion();
            }
        };
        let started = std::thread::Builder::new().name("hook-step".to_owned()).spawn(work);
        started.map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
        let lost = || Err(Error::Internal("the thread of the operation ended without a result".to_owned()));
        let Some(timeout) = timeout else { return ended.await.unwrap_or_else(|_| lost()) };
        if let Ok(outcome) = tokio::time::timeout(timeout, &mut ended).await {
            return outcome.unwrap_or_else(|_| lost());
        }
        // From here on, a result is late. One that was sent just before still counts.
        ended.close();
        ended.try_recv().unwrap_or(Err(Error::CloneTimeout { seconds: timeout.as_secs_f64() }))
    }

    /// The event that hooks get for an `operation` on the snapshot `id` of `vm_id`. `disks` has the name, source and
    /// size of each disk; `vm` is the VM's definition, if it is still in the inventory.
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

    /// The event of a deletion. A VM that is no longer in the inventory is named by its id.
    pub(crate) fn deletion(&self, snapshot: &Snapshot) -> Event {
        let vm = self.inventory.find_vm(&snapshot.vm).ok().map(|(_, vm)| vm);
        let disks = snapshot.disks.iter().map(|disk| (&disk.name, &disk.source, disk.identity.size));
        self.event(Operation::SnapshotDelete, (snapshot.id, &snapshot.vm), disks, vm.as_deref())
    }
}

/// The error that no hook has quiesced the guest, with the call that explains it.
fn not_quiesced(runs: &[HookRun]) -> Error {
    let denied = runs.iter().find(|run| run.denies_quiesced());
    let failed = || runs.iter().find(|run| run.has_failed());
    let skipped = || runs.iter().find(|run| run.outcome == HookOutcome::Skipped && !run.detail.is_empty());
    Error::NotQuiesced(match denied.or_else(failed).or_else(skipped) {
        Some(run) => format!("{} hook {}: {}", run.stage.as_str(), run.name, run.detail),
        None => "no hook reported \"quiesced\"".to_owned(),
    })
}

#[cfg(test)]
mod tests;
