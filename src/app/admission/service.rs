//! Decides whether work may start.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::export::{Export, ExportDetails, ExportPermit};
use super::policy::PolicyCheck;
use super::queue::{AdmissionQueue, Entry, Permit, Queued, Share};
use super::vm_locks::VmLocks;
use crate::app::Error;
use crate::app::changeable::Changeable;
use crate::app::error::Refusal;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Tasks, rounds};
use crate::auth::{ClientAddress, Session};
use crate::config::{self, Config};
use crate::model::{Annotations, FoldedName, VmId};
use crate::store::Store;

/// Log-ins that ask the manager at a time, so that unauthenticated clients cannot flood it through this service.
const LOG_INS: usize = 16;

/// Further slots for log-ins from addresses that have logged in to the account before, so that others who guess
/// passwords cannot take all.
const RESERVED_LOG_INS: usize = 4;

/// Log-ins that may wait for a slot. More are refused at once, so that they do not pile up while the manager does not
/// respond.
const LOG_IN_QUEUE: usize = 32;

/// Cost requests at a time. Each reads the maps of many files; more are refused at once.
const COST_REQUESTS: usize = 1;

/// Creations that may wait for a slot.
pub(crate) const CREATION_QUEUE: usize = 64;

/// A creation is refused if this many operations already hold or wait for the VM.
pub(crate) const CREATION_QUEUE_OF_VM: usize = 4;

/// A deletion is refused if this many operations already hold or wait for the VM.
const DELETION_QUEUE_OF_VM: usize = 64;

/// Downloads that may wait for a slot.
pub(crate) const EXPORT_QUEUE: usize = 128;

const QUEUE_OF_VM_FULL: Refusal = Refusal::QueueFull("changes of this VM's snapshots");

/// How often the slots of downloads from unresponsive repositories are released.
const HUNG_INTERVAL: Duration = Duration::from_secs(5);

/// How often the rates of clients are measured.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// A log-in, queued or running.
pub(crate) struct LogIn {
    pub address: Option<ClientAddress>,
    /// Whether the account was logged in to from there before.
    pub is_known: bool,
}

impl Queued for LogIn {
    /// One client must not take all slots.
    fn share(&self) -> Option<Share> {
        let origin = self.address.map(|address| address.origin().to_string());
        Some((origin.unwrap_or_default().into(), "".into()))
    }
}

/// A request for the cost of snapshots.
pub(crate) struct CostRequest {
    pub user: String,
}

impl Queued for CostRequest {}

/// A creation, queued or running.
pub(crate) struct Creation {
    /// Each once.
    pub vms: Vec<VmId>,
    /// Those of each snapshot.
    pub annotations: Annotations,
    pub user: String,
}

impl Queued for Creation {}

/// A creation that may start, with its slot and the mutexes of its VMs in their order.
pub(crate) struct Admitted {
    pub slot: Permit<Creation>,
    pub vm_guards: Vec<OwnedMutexGuard<()>>,
}

/// The queues, the VM locks and the policy.
pub(crate) struct Admission {
    pub log_ins: AdmissionQueue<LogIn>,
    pub reserved_log_ins: AdmissionQueue<LogIn>,
    pub cost_requests: AdmissionQueue<CostRequest>,
    pub creations: AdmissionQueue<Creation>,
    pub exports: AdmissionQueue<Export>,
    pub vm_locks: Arc<VmLocks>,
    pub policy: PolicyCheck,
    /// How long a log-in may wait for a slot.
    log_in_wait: Duration,
    export: Changeable<config::Export>,
}

/// How long a request for several VMs waits for one of them while it has another.
const GROUP_WAIT: Duration = Duration::from_secs(30);

impl Admission {
    pub(crate) fn new(
        config: &Config,
        export: Changeable<config::Export>,
        inventory: &Arc<Inventory>,
        store: Store,
        tasks: Tasks,
    ) -> Self {
        let policy = config.policy;
        Self {
            log_ins: AdmissionQueue::fair(LOG_INS, LOG_IN_QUEUE),
            reserved_log_ins: AdmissionQueue::fair(RESERVED_LOG_INS, LOG_IN_QUEUE),
            cost_requests: AdmissionQueue::new(COST_REQUESTS, 0),
            log_in_wait: config.manager.timeout,
            creations: AdmissionQueue::new(policy.snapshot_concurrency, CREATION_QUEUE),
            exports: AdmissionQueue::fair(policy.export_concurrency, EXPORT_QUEUE),
            vm_locks: Arc::new(VmLocks::new(Arc::clone(inventory), tasks)),
            policy: PolicyCheck { limits: Changeable::new(policy), inventory: Arc::clone(inventory), store },
            export,
        }
    }

    /// Replaces the policy and the limits of downloads. Work that has a slot keeps it.
    pub(crate) fn set_limits(&self, policy: config::Policy, export: config::Export) {
        self.policy.limits.set(policy);
        self.export.set(export);
        self.creations.set_limit(policy.snapshot_concurrency);
        self.exports.set_limit(policy.export_concurrency);
    }

    /// Bytes per second. Slower clients are disconnected while others wait.
    pub(crate) fn min_rate(&self) -> Option<NonZero<u64>> {
        self.export.get().min_rate
    }

    /// Waits until the manager may be asked.
    ///
    /// # Errors
    /// [`Error::Throttled`]: at once if too many log-ins are waiting, otherwise after the manager's timeout.
    pub(crate) async fn admit_log_in(&self, log_in: LogIn) -> Result<Permit<LogIn>, Error> {
        let has_reserve = log_in.is_known && !self.log_ins.has_free_slot();
        let queue = if has_reserve { &self.reserved_log_ins } else { &self.log_ins };
        let queued = queue.join(log_in).map_err(|_| Error::Throttled)?;
        let waited = tokio::time::timeout(self.log_in_wait, queued.admitted()).await;
        waited.map_err(|_| Error::Throttled)?.map_err(|_| Error::Throttled)
    }

    /// Admits a request for the cost of snapshots.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`] if another request runs.
    pub(crate) async fn admit_cost_request(&self, request: CostRequest) -> Result<Permit<CostRequest>, Refusal> {
        let full = |_| Refusal::QueueFull("cost requests");
        self.cost_requests.join(request).map_err(full)?.admitted().await.map_err(full)
    }

    /// Waits until the snapshots of `vm` may be deleted.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`].
    pub(crate) async fn admit_deletion(&self, vm: &VmId) -> Result<OwnedMutexGuard<()>, Refusal> {
        self.vm_locks.take_behind(vm, DELETION_QUEUE_OF_VM).await.ok_or(QUEUE_OF_VM_FULL)
    }

    /// Waits until the creation may start.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`].
    pub(crate) async fn admit_creation(&self, creation: Creation) -> Result<Admitted, Refusal> {
        let full = |_| Refusal::QueueFull("snapshots");
        let mut vms: Vec<_> = creation.vms.iter().cloned().enumerate().collect();
        let queued = self.creations.join(creation).map_err(full)?;
        // The VMs first, then the slot, so that requests waiting for one VM do not block other VMs. In a fixed order,
        // so that no two requests wait for each other.
        vms.sort_by(|(_, one), (_, other)| one.cmp(other));
        let mut vm_guards = Vec::with_capacity(vms.len());
        for (index, vm) in vms {
            let vm_guard = self.vm_locks.take_behind(&vm, CREATION_QUEUE_OF_VM);
            // While one VM is held and another waited for, the hooks that the first still needs cannot be called.
            let wait = if vm_guards.is_empty() { Duration::MAX } else { GROUP_WAIT };
            let timeout = |_| Refusal::GroupTimeout { vm: vm.to_string(), seconds: wait.as_secs() };
            let vm_guard = tokio::time::timeout(wait, vm_guard).await.map_err(timeout)?;
            vm_guards.push((index, vm_guard.ok_or(QUEUE_OF_VM_FULL)?));
        }
        vm_guards.sort_by_key(|(index, _)| *index);
        let slot = queued.admitted().await.map_err(full)?;
        Ok(Admitted { slot, vm_guards: vm_guards.into_iter().map(|(_, guard)| guard).collect() })
    }

    /// Waits until the download may start.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`], [`Refusal::QueueTimeout`].
    pub(crate) async fn admit_export(&self, export: Export) -> Result<ExportPermit, Error> {
        let full = |_| Refusal::QueueFull("exports");
        let queued = self.exports.join(export).map_err(full)?;
        let wait = self.policy.limits.get().export_wait;
        let waited = tokio::time::timeout(wait, queued.admitted()).await;
        let timeout = |_| Refusal::QueueTimeout { seconds: wait.as_secs_f64() };
        Ok(waited.map_err(timeout)?.map_err(full)?)
    }

    /// Ends the downloads of a user, or of all users. Returns how many there were.
    pub(crate) fn end_exports(&self, user: Option<&str>, reason: &'static str) -> usize {
        let (mut ended, user) = (0, user.map(FoldedName::new));
        self.exports.each(|Entry { work, .. }| {
            if user.as_ref().is_none_or(|user| FoldedName::new(work.details.session.subject()) == *user) {
                ended += usize::from(work.end(reason));
            }
        });
        ended
    }

    /// Ends the downloads whose certificate is not accepted any more.
    pub(crate) fn end_exports_if(&self, is_refused: impl Fn(&Session) -> bool) {
        let mut all = Vec::new();
        self.exports.each(|Entry { work, .. }| all.push(Arc::clone(work)));
        for export in all.iter().filter(|export| is_refused(&export.details.session)) {
            export.end("the certificate of the user is not accepted any more");
        }
    }

    /// Releases the slots of downloads whose repository is unresponsive, until `stop`.
    pub(crate) async fn release_hung_slots(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(HUNG_INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            self.exports.release_slots(|export| {
                let hangs = !export.executor.is_responsive();
                if hangs {
                    let ExportDetails { vm, snapshot, disk, .. } = &export.details;
                    tracing::warn!(
                        %vm, %snapshot, %disk,
                        "the repository does not respond; releasing the download's slot"
                    );
                }
                hangs
            });
        }
    }

    /// Disconnects the slowest clients while others wait, until `stop`.
    pub(crate) async fn disconnect_slow_clients(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(RATE_INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let Some(min_rate) = self.min_rate().map(NonZero::get) else { continue };
            let mut slow = Vec::new();
            self.exports.each(|entry| {
                let rate = if entry.is_running { entry.work.client_rate() } else { None };
                slow.extend(rate.filter(|rate| *rate < min_rate as f64).map(|rate| (rate, Arc::clone(&entry.work))));
            });
            slow.sort_by(|(one, _), (other, _)| one.total_cmp(other));
            for (rate, export) in slow.into_iter().take(self.exports.waiting()) {
                export.disconnect_slow_client(rate);
            }
        }
    }
}
