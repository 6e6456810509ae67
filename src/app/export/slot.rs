//! Bodies of disks that are sent: which ones, and how many at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::admission::policy::Refusal;
use crate::app::admission::queue::{Permit, Queued, Share};
use crate::app::audit::Actor;
use crate::app::export::client_rate::Taking;
use crate::app::files::open_disk::OpenDisk;
use crate::app::retention::uses::InUse;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::model::{DiskName, SnapshotId, VmId};
use crate::repository::executor::Access;
use crate::repository::{Executor, OpenError};
use crate::sys::io_priority;

/// How often it is looked for exports whose repository hangs.
const INTERVAL: Duration = Duration::from_secs(5);

/// Exports that may wait.
pub(crate) const QUEUE: usize = 128;

/// The connection that a body is sent on.
pub trait ExportClient: Send + Sync {
    /// Bytes that were sent, and that the client has not taken yet.
    fn not_taken(&self) -> u64;

    /// Ends it, in the middle of the body.
    fn end(&self);
}

/// A body of a disk that is to be sent.
pub(crate) struct Export {
    pub vm: VmId,
    pub snapshot: SnapshotId,
    pub disk: DiskName,
    pub actor: Actor,
    pub total: u64,
    pub done: AtomicU64,
    /// How many ranges it has.
    pub ranges: u64,
    /// Whether it is the whole disk.
    pub is_whole: bool,
    /// Bytes that the audit has told of.
    pub told: AtomicU64,
    pub taking: Taking,
    recipient: Arc<dyn ExportClient>,
    was_slow: AtomicBool,
    executor: Executor,
    #[expect(dead_code, reason = "holds the snapshot until the body is gone")]
    held: Arc<InUse>,
}

impl Queued for Export {
    fn share(&self) -> Option<Share> {
        Some((self.actor.user().into(), self.vm.clone()))
    }
}

impl Export {
    /// Ends the connection, whose client takes `rate` bytes a second.
    pub(crate) fn cut_for_being_slow(&self, rate: f64) {
        if self.was_slow.swap(true, Ordering::Relaxed) {
            return;
        }
        let Self { vm, snapshot, disk, .. } = self;
        let (user, rate) = (self.actor.user(), rate as u64);
        tracing::warn!(%vm, %snapshot, %disk, ?user, rate, "others wait, and the client is slower than export.min_rate: its connection is cut");
        self.recipient.end();
    }

    /// Bytes that the client has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.done.load(Ordering::Relaxed).saturating_sub(self.recipient.not_taken())
    }

    /// Why it ended before its end.
    pub(crate) fn why_cut(&self) -> Option<String> {
        let is_slow = self.was_slow.load(Ordering::Relaxed);
        is_slow.then(|| "others waited, and the client was slower than export.min_rate".to_owned())
    }
}

/// A body's place among those that are sent at a time, free again when this is dropped.
pub struct ExportPlace {
    place: Permit<Export>,
    app: Arc<App>,
}

impl ExportPlace {
    /// Reads the disk on this thread, letting others go first where the config has it so.
    ///
    /// # Errors
    /// Those of `read`; [`OpenError::RepositoryUnavailable`] where nothing was sent yet, and the repository hangs.
    pub fn during<T>(&self, read: impl FnOnce(&Access<'_>) -> Result<T, OpenError>) -> Result<T, OpenError> {
        let Export { executor, done: sent, .. } = self.place.what();
        let read = |access: &Access<'_>| {
            // Where the kernel does not let us, we read as others do.
            let _idle = self.app.idle_io.then(io_priority::set_idle);
            read(access)
        };
        // What has begun goes on, so that no download is cut for what others meet.
        let has_begun = sent.load(Ordering::Relaxed) > 0;
        if has_begun { executor.run_here_started(read) } else { executor.run_here(read)? }
    }

    /// Counts bytes that are handed to the connection. From now on it is the client's turn.
    pub fn sent(&self, bytes: u64) {
        let Export { done, taking, .. } = self.place.what();
        done.fetch_add(bytes, Ordering::Relaxed);
        taking.begin();
    }

    /// The connection asks for more: now it is our turn.
    pub fn is_asked(&self) {
        self.place.what().taking.end();
    }
}

impl Drop for ExportPlace {
    fn drop(&mut self) {
        self.app.audit_export(self.place.what());
    }
}

impl App {
    /// Waits until a body of `total` bytes of a disk, in so many `ranges`, may be sent to `recipient`.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`], [`Refusal::QueueTimeout`].
    pub async fn export_place(
        self: &Arc<Self>,
        session: &Session,
        of: &OpenDisk,
        (total, ranges): (u64, u64),
        recipient: Arc<dyn ExportClient>,
    ) -> Result<ExportPlace, Error> {
        let ((vm, snapshot), disk) = (of.snapshot.clone(), of.disk.name.clone());
        let what = format!("{vm}/{snapshot}/{disk}");
        let actor = Actor::from(session);
        let export = Export {
            vm,
            snapshot,
            disk,
            actor: actor.clone(),
            total,
            done: AtomicU64::new(0),
            ranges,
            is_whole: total == of.file.size(),
            told: AtomicU64::new(0),
            taking: Taking::default(),
            recipient,
            was_slow: AtomicBool::new(false),
            executor: of.file.executor().clone(),
            held: Arc::clone(&of.held),
        };
        let place = self.place_for(export).await.map_err(Error::from);
        if place.is_err() {
            self.audit_refused_export(&actor, what, &place);
        }
        Ok(ExportPlace { place: place?, app: Arc::clone(self) })
    }

    async fn place_for(&self, export: Export) -> Result<Permit<Export>, Refusal> {
        let too_long = |_| Refusal::QueueFull("exports");
        let ticket = self.exports.join(export).map_err(too_long)?;
        let wait = self.policy.export_wait;
        let waited = tokio::time::timeout(wait, ticket.place()).await;
        waited.map_err(|_| Refusal::QueueTimeout { seconds: wait.as_secs_f64() })?.map_err(too_long)
    }

    /// Takes their places from exports whose repository hangs, now and then, until `stop`.
    pub async fn free_places_until(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.exports.free(|export| {
                let stuck = !export.executor.is_responsive();
                if stuck {
                    let Export { vm, snapshot, disk, .. } = export;
                    tracing::warn!(%vm, %snapshot, %disk, "a repository does not answer: another export takes the place");
                }
                stuck
            });
        }
    }
}
