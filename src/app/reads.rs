//! Who reads snapshots, or did a short time ago: those are not swept.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::audit;
use super::line::{Line, Place};
use super::policy::Refusal;
use super::read_disk::OpenDisk;
use super::{App, Error};
use crate::auth::Session;
use crate::model::{DiskName, SnapshotId, VmId};
use crate::repository::executor::Access;
use crate::repository::{Executor, OpenError};
use crate::sys::io_priority;

/// How long after a read a snapshot counts as being read: a client works on what it has.
const RECENT: Duration = Duration::from_secs(10 * 60);

/// How often it is looked for exports whose repository hangs.
const INTERVAL: Duration = Duration::from_secs(5);

/// Exports that may wait.
pub(super) const QUEUE: usize = 128;

/// When each snapshot was read last.
#[derive(Default)]
pub(super) struct Reads(Mutex<HashMap<SnapshotId, Instant>>);

impl Reads {
    pub(super) fn note(&self, id: SnapshotId) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(id, Instant::now());
    }

    pub(super) fn is_recent(&self, id: SnapshotId) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(&id).is_some_and(|at| at.elapsed() < RECENT)
    }

    /// Forgets what counts no more.
    pub(super) fn forget_old(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, at| at.elapsed() < RECENT);
    }
}

/// A body of a disk that is to be sent.
pub(super) struct Export {
    pub vm: VmId,
    pub snapshot: SnapshotId,
    pub disk: DiskName,
    pub user: String,
    pub address: Option<IpAddr>,
    pub total: u64,
    pub done: AtomicU64,
    executor: Executor,
}

/// A body's place among those that are sent at a time, free again when this is dropped.
pub struct ExportPlace {
    place: Place<Export>,
    app: Arc<App>,
}

impl ExportPlace {
    /// Reads the disk on this thread, letting others go first where the config has it so.
    ///
    /// # Errors
    /// Those of `read`; [`OpenError::RepositoryAway`] where nothing was sent yet, and the repository hangs.
    pub fn during<T>(&self, read: impl FnOnce(&Access<'_>) -> Result<T, OpenError>) -> Result<T, OpenError> {
        let Export { executor, done: sent, .. } = self.place.what();
        let read = |access: &Access<'_>| {
            // Where the kernel does not let us, we read as others do.
            let _idle = self.app.reads_idly.then(io_priority::let_others_go_first);
            read(access)
        };
        // What has begun goes on, so that no download is cut for what others meet.
        let has_begun = sent.load(Ordering::Relaxed) > 0;
        if has_begun { executor.lend_on(read) } else { executor.lend(read)? }
    }

    /// Counts bytes that were handed to the connection.
    pub fn sent(&self, bytes: u64) {
        self.place.what().done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for ExportPlace {
    fn drop(&mut self) {
        let Export { vm, snapshot, disk, user, address, total, done, .. } = self.place.what();
        self.app.reads.note(*snapshot);
        let done = done.load(Ordering::Relaxed);
        audit::export(user, *address, format_args!("{vm}/{snapshot}/{disk}"), done, *total);
    }
}

impl App {
    /// Waits until a body of `total` bytes of a disk may be sent.
    ///
    /// # Errors
    /// [`Refusal::TooLongALine`].
    pub async fn export_place(
        self: &Arc<Self>,
        session: &Session,
        of: &OpenDisk,
        total: u64,
    ) -> Result<ExportPlace, Error> {
        let ((vm, snapshot), disk) = (of.snapshot.clone(), of.disk.name.clone());
        let (user, address) = (session.user().to_owned(), session.address());
        let (executor, done) = (of.file.executor().clone(), AtomicU64::new(0));
        let export = Export { vm, snapshot, disk, user, address, total, done, executor };
        let ticket = self.exports.join(export).map_err(|_| Refusal::TooLongALine("exports"))?;
        Ok(ExportPlace { place: ticket.place().await, app: Arc::clone(self) })
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

    /// Whether somebody reads the snapshot, or did a short time ago.
    pub(super) fn is_read(&self, id: SnapshotId) -> bool {
        self.reads.is_recent(id) || is_exported(&self.exports, id)
    }
}

fn is_exported(exports: &Line<Export>, id: SnapshotId) -> bool {
    let mut found = false;
    exports.each(|entry| found |= entry.what.snapshot == id);
    found
}
