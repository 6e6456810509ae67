//! A download of a disk: what is queued, and what is known of it while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::client_rate::ClientRate;
use super::queue::{Permit, Queued, Share};
use crate::app::audit::Actor;
use crate::app::retention::InUse;
use crate::model::{DiskName, SnapshotId, VmId};
use crate::repository::Executor;

/// The connection that a body is sent on.
pub trait ExportClient: Send + Sync {
    /// Bytes that were sent and that the client has not acknowledged yet.
    fn unacknowledged(&self) -> u64;

    /// Ends the connection in the middle of the body.
    fn disconnect(&self);
}

/// Which download it is.
pub(crate) struct ExportDetails {
    pub vm: VmId,
    pub snapshot: SnapshotId,
    pub disk: DiskName,
    pub actor: Actor,
    /// Bytes of the body.
    pub total: u64,
    pub ranges: u64,
    pub is_whole_disk: bool,
}

/// A permit to send a body.
pub(crate) type ExportPermit = Permit<Export>;

/// A download, queued or running.
pub(crate) struct Export {
    pub details: ExportDetails,
    pub executor: Executor,
    /// Bytes that were handed to the connection.
    pub done: AtomicU64,
    /// Bytes of them that the audit has recorded.
    audited: AtomicU64,
    rate: ClientRate,
    client: Arc<dyn ExportClient>,
    was_slow: AtomicBool,
    /// Keeps the snapshot from being swept until the body is gone.
    _in_use: Arc<InUse>,
}

impl Queued for Export {
    fn share(&self) -> Option<Share> {
        Some((self.details.actor.user().into(), self.details.vm.clone()))
    }
}

impl Export {
    pub(crate) fn new(
        details: ExportDetails,
        executor: Executor,
        client: Arc<dyn ExportClient>,
        in_use: Arc<InUse>,
    ) -> Self {
        Self {
            details,
            executor,
            done: AtomicU64::new(0),
            audited: AtomicU64::new(0),
            rate: ClientRate::default(),
            client,
            was_slow: AtomicBool::new(false),
            _in_use: in_use,
        }
    }

    /// The name of the disk for the audit and the log.
    pub(crate) fn name(&self) -> String {
        let ExportDetails { vm, snapshot, disk, .. } = &self.details;
        format!("{vm}/{snapshot}/{disk}")
    }

    /// Counts bytes that were handed to the connection. From now on the service waits for the client.
    pub(crate) fn sent(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.rate.begin();
    }

    /// The connection asks for more: now the client waits for the service.
    pub(crate) fn is_asked(&self) {
        self.rate.end();
    }

    /// Bytes since the last call, which the caller records in the audit.
    pub(crate) fn take_unaudited(&self) -> u64 {
        let done = self.done.load(Ordering::Relaxed);
        done.saturating_sub(self.audited.swap(done, Ordering::Relaxed))
    }

    /// The client's rate, bytes a second, if the service has waited for the client long enough to tell.
    pub(super) fn client_rate(&self) -> Option<f64> {
        self.rate.rate(self.done.load(Ordering::Relaxed).saturating_sub(self.client.unacknowledged()))
    }

    /// Disconnects a client that takes `rate` bytes a second while others wait.
    pub(super) fn disconnect_slow_client(&self, rate: f64) {
        if self.was_slow.swap(true, Ordering::Relaxed) {
            return;
        }
        let ExportDetails { vm, snapshot, disk, actor, .. } = &self.details;
        let (user, rate) = (actor.user(), rate as u64);
        tracing::warn!(%vm, %snapshot, %disk, ?user, rate, "client slower than export.min_rate while others wait: disconnecting it");
        self.client.disconnect();
    }

    /// Why the service ended it early.
    pub(crate) fn why_cut(&self) -> Option<String> {
        let is_slow = self.was_slow.load(Ordering::Relaxed);
        is_slow.then(|| "others waited, and the client was slower than export.min_rate".to_owned())
    }
}
