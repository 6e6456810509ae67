//! Bodies of disks that are sent: which ones, and how many at a time.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::audit;
use super::in_use::InUse;
use super::line::Place;
use super::policy::Refusal;
use super::read_disk::OpenDisk;
use super::{App, Error};
use crate::auth::Session;
use crate::model::{DiskName, SnapshotId, VmId};
use crate::repository::executor::Access;
use crate::repository::{Executor, OpenError};
use crate::sys::io_priority;

/// How often it is looked for exports whose repository hangs.
const INTERVAL: Duration = Duration::from_secs(5);

/// Exports that may wait.
pub(super) const QUEUE: usize = 128;

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
    #[expect(dead_code, reason = "holds the snapshot until the body is gone")]
    held: Arc<InUse>,
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
        let (executor, done, held) = (of.file.executor().clone(), AtomicU64::new(0), Arc::clone(&of.held));
        let export = Export { vm, snapshot, disk, user, address, total, done, executor, held };
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
}
