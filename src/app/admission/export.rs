//! A download of a disk, queued or running.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::client_rate::ClientRate;
use super::queue::{Permit, Queued, Share};
use crate::app::audit::Actor;
use crate::app::retention::InUse;
use crate::auth::Session;
use crate::model::{Annotations, DiskName, SnapshotId, VmId};
use crate::repository::Executor;

/// The connection that a body is sent on.
pub trait ExportClient: Send + Sync {
    /// Sent bytes that the client has not acknowledged yet.
    fn unacknowledged(&self) -> u64;

    /// Closes the connection in the middle of the body.
    fn disconnect(&self);
}

/// Identifies a download.
pub(crate) struct ExportDetails {
    pub vm: VmId,
    pub snapshot: SnapshotId,
    pub disk: DiskName,
    /// Those of the snapshot.
    pub annotations: Annotations,
    pub session: Session,
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
    /// Bytes handed to the connection.
    pub done: AtomicU64,
    /// Bytes of `done` that the audit has recorded.
    audited: AtomicU64,
    rate: ClientRate,
    client: Arc<dyn ExportClient>,
    /// Why the service ends it early.
    ended: OnceLock<&'static str>,
    /// Keeps the snapshot from being swept while the download exists.
    _in_use: Arc<InUse>,
}

impl Queued for Export {
    fn share(&self) -> Option<Share> {
        Some((self.details.actor.user().into(), self.details.vm.as_str().into()))
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
            ended: OnceLock::new(),
            _in_use: in_use,
        }
    }

    /// The name of the disk for the audit and the log.
    pub(crate) fn name(&self) -> String {
        let ExportDetails { vm, snapshot, disk, .. } = &self.details;
        format!("{vm}/{snapshot}/{disk}")
    }

    /// Counts bytes handed to the connection. The wait for the client begins.
    pub(crate) fn sent(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.rate.begin();
    }

    /// The connection asks for more: the wait for the client ends.
    pub(crate) fn client_ready(&self) {
        self.rate.end();
    }

    /// Bytes since the last call. The caller records them in the audit.
    pub(crate) fn take_unaudited(&self) -> u64 {
        let done = self.done.load(Ordering::Relaxed);
        done.saturating_sub(self.audited.swap(done, Ordering::Relaxed))
    }

    /// The client's rate, bytes per second, if the service waited for the client long enough to tell.
    pub(super) fn client_rate(&self) -> Option<f64> {
        self.rate.rate(self.done.load(Ordering::Relaxed).saturating_sub(self.client.unacknowledged()))
    }

    /// Disconnects the client, whose rate is `rate` bytes per second, because others wait.
    pub(super) fn disconnect_slow_client(&self, rate: f64) {
        if !self.end("the client was slower than export.min_rate while others waited") {
            return;
        }
        let ExportDetails { vm, snapshot, disk, actor, .. } = &self.details;
        let (user, rate) = (actor.user(), rate as u64);
        tracing::warn!(
            %vm, %snapshot, %disk, ?user, rate,
            "disconnecting a client slower than export.min_rate, because others are waiting"
        );
    }

    /// Closes the connection in the middle of the body. Returns whether this is the first call.
    pub(crate) fn end(&self, reason: &'static str) -> bool {
        let is_first = self.ended.set(reason).is_ok();
        if is_first {
            self.client.disconnect();
        }
        is_first
    }

    /// Why the service ended the download early.
    pub(crate) fn cut_reason(&self) -> Option<String> {
        self.ended.get().map(|reason| (*reason).to_owned())
    }
}
