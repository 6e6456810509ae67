//! The slot of a download.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::audit;
use crate::app::admission::ExportPermit;
use crate::app::audit::AuditTrail;
use crate::metrics::Metrics;
use crate::repository::OpenError;
use crate::repository::executor::Access;
use crate::sys::io_priority;

/// The concurrency slot of a download. Dropping it frees the slot and records the end of the download in the audit and in the metrics.
pub(super) struct ExportSlot {
    pub permit: ExportPermit,
    pub trail: Arc<AuditTrail>,
    pub metrics: Arc<Metrics>,
    /// Whether disks are read only when no other process reads them.
    pub idle_io: bool,
}

impl ExportSlot {
    /// Reads the disk on this thread.
    ///
    /// # Errors
    /// Those of `read`; [`OpenError::RepositoryUnavailable`] if nothing was sent yet and the repository hangs.
    pub fn read<T>(&self, read: impl FnOnce(&Access<'_>) -> Result<T, OpenError>) -> Result<T, OpenError> {
        let export = self.permit.work();
        let read = |access: &Access<'_>| {
            // If the kernel does not allow it, the disk is read at the normal priority.
            let _idle = self.idle_io.then(io_priority::set_idle);
            read(access)
        };
        // A download that has started continues: it must not be cut because other reads hang.
        let has_begun = export.done.load(Ordering::Relaxed) > 0;
        if has_begun { export.executor.run_here_started(read) } else { export.executor.run_here(read)? }
    }
}

impl Drop for ExportSlot {
    fn drop(&mut self) {
        let outcome = audit::record_end(&self.trail, self.permit.work());
        self.metrics.export_ended(outcome);
    }
}
