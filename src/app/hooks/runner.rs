//! Runs operations with their hooks: `pre` before them, and `post` after them in every case.

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::pending::PendingHooks;
use super::report::HookReport;
use crate::app::Error;
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks};
use crate::hooks::{
    self, Event, EventDisk, EventVm, Hooks, Operation, PendingPostHooks, PostResult, PreResult, Refresh,
};
use crate::inventory;
use crate::metrics::Metrics;
use crate::model::{DiskName, DiskSource, HookOutcome, HookRun, PendingHooksKey, Snapshot, SnapshotId, VmId};

/// Work that blocks.
type Step<T> = Box<dyn FnOnce() -> T + Send>;

/// An operation on one snapshot, with its hooks.
pub(crate) struct GuardedOperation {
    /// The hooks and the key under which the caller has recorded them as pending. `None` if no hook is called.
    pub hooks: Option<(PendingHooksKey, PendingPostHooks)>,
    /// Runs again before each further attempt to quiesce.
    pub refresh: Refresh,
    /// Whether the operation fails if no hook quiesces the guest: before the work if that is known then.
    pub requires_quiesced: bool,
}

/// The work between the `pre` and the `post` hooks of all operations.
pub(crate) struct GuardedStep<T> {
    pub work: Step<Result<T, Error>>,
    /// Runs if the work ends after its timeout. Without it, there is no timeout.
    pub on_late_completion: Option<Step<()>>,
}

/// An operation whose hooks were called before it.
struct Begun {
    key: PendingHooksKey,
    post_hooks: Arc<PendingPostHooks>,
    requires_quiesced: bool,
    /// `None` after a panic.
    pre: Option<PreResult>,
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
    pub(crate) fn new(common: &Common, pending: Arc<PendingHooks>) -> Self {
        let Common { inventory, metrics, tasks, .. } = common.clone();
        Self { hooks: Arc::clone(&pending.hooks), pending, inventory, metrics, tasks }
    }

    /// Does the work of `step` with the hooks of all `operations`: first every `pre`, then the work, then every `post`.
    /// Hooks of different operations run at the same time. Once `pre` was called, `post` is called in every case: after
    /// an error, a panic, or a timeout because a file system hangs. After a crash, the post hooks are still pending.
    /// The reports are in the order of the operations.
    ///
    /// Everything runs on its own threads, so that a blocked runtime or thread pool cannot keep a guest frozen.
    pub(crate) async fn with_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        operations: Vec<GuardedOperation>,
        step: GuardedStep<T>,
    ) -> (Result<T, Error>, Vec<HookReport>) {
        let no_calls = || operations.iter().map(|_| HookReport::default()).collect();
        if operations.iter().all(|operation| operation.hooks.is_none()) {
            return (self.tasks.blocking(step.work).await, no_calls());
        }
        let recorded: Vec<_> = operations.iter().filter_map(|operation| operation.hooks.clone()).collect();
        let no_calls = no_calls();
        let Some(active) = self.pending.hold() else {
            self.put_all(recorded, put_earlier).await;
            let how = "the service is stopping, so it was not called".to_owned();
            return (Err(Error::HookFailed { hook: "pre".to_owned(), operation: "the operation", how }), no_calls);
        };
        let runner = Arc::clone(self);
        let all = async move {
            let _active = active;
            runner.run_with_hooks(operations, step).await
        };
        match hooks::run_isolated(all) {
            Ok(ended) => match ended.await {
                Ok(ended) => ended,
                Err(_) => {
                    self.put_all(recorded, PendingHooks::put_without_result).await;
                    (Err(Error::Internal("the thread of the operation's hooks panicked".to_owned())), no_calls)
                }
            },
            Err(error) => {
                self.put_all(recorded, put_earlier).await;
                let error = Error::Internal(format!("cannot start a thread for the operation's hooks: {error}"));
                (Err(error), no_calls)
            }
        }
    }

    /// Changes the records of operations whose hooks did not run to their end.
    async fn put_all(
        self: &Arc<Self>,
        recorded: Vec<(PendingHooksKey, PendingPostHooks)>,
        put: impl Fn(&PendingHooks, PendingHooksKey, PendingPostHooks),
    ) {
        let keys: Vec<_> = recorded.iter().map(|(key, _)| *key).collect();
        for (key, post_hooks) in recorded {
            put(&self.pending, key, post_hooks);
        }
        let written = self.blocking(move |runner| {
            keys.into_iter().for_each(|key| runner.pending.write_change(key));
            Ok(())
        });
        drop(written.await);
    }

    async fn run_with_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        operations: Vec<GuardedOperation>,
        step: GuardedStep<T>,
    ) -> (Result<T, Error>, Vec<HookReport>) {
        let GuardedStep { work, on_late_completion } = step;
        let (is_group, cancel) = (operations.len() > 1, self.hooks.cancellation());
        let (report_pre, mut pre_reports) = tokio::sync::mpsc::unbounded_channel();
        let (decide, decision) = tokio::sync::watch::channel(None);
        let vm_of = |operation: &GuardedOperation| Some(operation.hooks.as_ref()?.1.event.vm.name.clone());
        let vms: BTreeSet<String> = operations.iter().filter_map(vm_of).collect();
        let calls: Vec<_> = operations
            .into_iter()
            .map(|operation| {
                let (pre, report_pre, mut decision) =
                    (self.call_pre(operation, cancel.clone()), report_pre.clone(), decision.clone());
                let runner = Arc::clone(self);
                let calls = async move {
                    let (begun, error) = pre.await;
                    let vm = begun.as_ref().map(|begun| begun.post_hooks.event.vm.name.clone()).unwrap_or_default();
                    let error = error.map(|error| error.of_vm(&vm, is_group));
                    // The receiver is gone if the operation has failed already.
                    let _ = report_pre.send((vm, error));
                    drop(report_pre);
                    let done = decision.wait_for(Option::is_some).await.is_ok_and(|done| *done == Some(true));
                    match begun {
                        Some(begun) => runner.call_post(begun, done, is_group).await,
                        None => (HookReport::default(), None),
                    }
                };
                tokio::spawn(calls.in_current_span())
            })
            .collect();
        drop(report_pre);
        let ready = self.wait_for_pre(&mut pre_reports, calls.len(), vms).await;
        drop(pre_reports);
        let mut outcome = match ready {
            Ok(()) => self.run_on_new_thread(work, on_late_completion).await,
            // No guest stays frozen for the hooks of another one, when they are of no use any more.
            Err(error) => {
                cancel.cancel();
                Err(error)
            }
        };
        decide.send_replace(Some(outcome.is_ok()));
        let mut reports = Vec::with_capacity(calls.len());
        for call in calls {
            let (report, error) =
                call.await.unwrap_or_else(|panic| (HookReport::default(), Some(Error::Internal(panic.to_string()))));
            if let (Ok(_), Some(error)) = (&outcome, error) {
                outcome = Err(error);
            }
            reports.push(report);
        }
        (outcome, reports)
    }

    /// Waits until the `pre` hooks of so many operations have ended, or one of them forbids the work. `vms` are those
    /// with hooks.
    async fn wait_for_pre(
        &self,
        reports: &mut UnboundedReceiver<(String, Option<Error>)>,
        operations: usize,
        mut vms: BTreeSet<String>,
    ) -> Result<(), Error> {
        // The guest that was ready first has been frozen since then. Its own limit is the timeout of a hook; beyond it, it
        // may have thawed, and its snapshot would be called quiesced without being so.
        let limit = self.hooks.step_timeout();
        let mut over = pin!(tokio::time::sleep(limit));
        for _ in 0..operations {
            let report = tokio::select! {
                biased;
                () = &mut over, if operations > 1 => {
                    let late = vms.into_iter().collect::<Vec<_>>().join(", ");
                    let seconds = limit.as_secs();
                    let how = format!("the hooks of all VMs together took longer than {seconds} s; not ready: VM {late}");
                    return Err(Error::HookFailed { hook: "the group".to_owned(), operation: "snapshot", how });
                }
                report = reports.recv() => report,
            };
            match report {
                Some((vm, None)) => drop(vms.remove(&vm)),
                Some((_, Some(error))) => return Err(error),
                None => return Err(Error::Internal("a task that calls pre hooks panicked".to_owned())),
            }
        }
        Ok(())
    }

    /// Calls the `pre` hooks of one operation. The error is why it must not start.
    fn call_pre(
        self: &Arc<Self>,
        operation: GuardedOperation,
        cancel: CancellationToken,
    ) -> impl Future<Output = (Option<Begun>, Option<Error>)> + Send + use<> {
        let runner = Arc::clone(self);
        let span = tracing::Span::current();
        async move {
            let GuardedOperation { hooks, refresh, requires_quiesced } = operation;
            let Some((key, post_hooks)) = hooks else { return (None, None) };
            let post_hooks = Arc::new(post_hooks);
            let shared = Arc::clone(&post_hooks);
            // On a task of its own: after a panic, the post hooks are called too.
            let called = async move { runner.hooks.call_pre(&shared, &refresh, &cancel).await };
            let called = tokio::spawn(called.in_current_span()).await;
            let (pre, error) = match called {
                Ok(pre) => {
                    let refused = pre.refusal.as_ref().map(|run| Error::HookFailed {
                        hook: run.name.clone(),
                        operation: post_hooks.event.operation.as_str(),
                        how: run.detail.clone(),
                    });
                    let error =
                        refused.or_else(|| (requires_quiesced && !pre.quiesced).then(|| not_quiesced(pre.runs())));
                    (Some(pre), error)
                }
                Err(panic) => (None, Some(Error::Internal(panic.to_string()))),
            };
            (Some(Begun { key, post_hooks, requires_quiesced, pre }), error)
        }
        .instrument(span)
    }

    /// Calls the `post` hooks of one operation, and records which have failed. The error is why the operation fails
    /// although its work is `done`.
    async fn call_post(self: &Arc<Self>, operation: Begun, done: bool, is_group: bool) -> (HookReport, Option<Error>) {
        let Begun { key, post_hooks, requires_quiesced, pre } = operation;
        let since = pre.as_ref().and_then(|pre| pre.since);
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
        let PostResult { runs, quiesced, not_called, finished, failed } = ended;
        let (runner, result) =
            (Arc::clone(self), PendingPostHooks { succeeded: done, finished, ..PendingPostHooks::clone(&post_hooks) });
        runner.pending.put_result(key, result, failed, &runs);
        // The database may be slow. The thaw of other VMs of the group must not wait for it.
        let recorded = tokio::task::spawn_blocking(move || runner.pending.write_change(key)).await;
        if let Err(panic) = recorded {
            tracing::error!(%panic, "the result of the post hooks is not recorded yet");
        }
        // A post hook has failed, so the freeze may have ended before the disks were cloned.
        let error = (done && requires_quiesced && !quiesced)
            .then(|| not_quiesced(&runs).of_vm(&post_hooks.event.vm.name, is_group));
        (HookReport { runs, quiesced, frozen_for, not_called }, error)
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

/// No hook of this operation was called.
fn put_earlier(pending: &PendingHooks, key: PendingHooksKey, post_hooks: PendingPostHooks) {
    pending.put(key, post_hooks.of_earlier(), Vec::new());
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
