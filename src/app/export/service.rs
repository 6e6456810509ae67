//! Downloads and checksums of disks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::audit::{self, EXPORT};
use super::block_export::DiskExport;
use super::download::Download;
use super::pieces::Part;
use super::rate_limit::ConnectionLimits;
use super::slot::ExportSlot;
use crate::app::Error;
use crate::app::admission::{Admission, Export, ExportClient, ExportDetails};
use crate::app::audit::{Actor, AuditTrail, Outcome, ROUND_OF_LINES};
use crate::app::files::{OpenDisk, lost};
use crate::app::tasks::rounds;
use crate::auth::Session;
use crate::metrics::Metrics;
use crate::repository::PageCachePolicy;

/// How often the audit's summaries are checked.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);

/// Sends disks to clients.
pub struct Exports {
    admission: Arc<Admission>,
    trail: Arc<AuditTrail>,
    metrics: Arc<Metrics>,
    /// Whether disks are read only when no other process reads them.
    idle_io: bool,
}

impl Exports {
    pub(crate) fn new(admission: Arc<Admission>, trail: Arc<AuditTrail>, metrics: Arc<Metrics>, idle_io: bool) -> Self {
        Self { admission, trail, metrics, idle_io }
    }

    /// Waits for a slot, then starts to read `parts` of a disk, which are `ranges` ranges, for `client`.
    ///
    /// # Errors
    /// [`Error::Refused`] if no slot becomes free in time; [`Error::SnapshotLost`], [`Error::Io`] if the first piece
    /// cannot be read.
    pub async fn download(
        &self,
        session: &Session,
        disk: OpenDisk,
        (parts, ranges): (Vec<Part>, u64),
        client: Arc<dyn ExportClient>,
        limits: ConnectionLimits,
    ) -> Result<Download, Error> {
        let OpenDisk { snapshot: (vm, snapshot), file, disk, in_use, .. } = disk;
        let (actor, total) = (Actor::from(session), parts.iter().map(Part::len).sum());
        let (name, is_whole_disk) = (disk.name.clone(), total == file.size());
        let details = ExportDetails { vm, snapshot, disk: name, actor: actor.clone(), total, ranges, is_whole_disk };
        let export = Export::new(details, file.executor().clone(), client, in_use);
        let name = export.name();
        let permit = self.admission.admit_export(export).await;
        if permit.is_err() {
            self.trail.without_effect(&actor, EXPORT, name, Outcome::of(&permit));
        }
        let slot = ExportSlot { permit: permit?, trail: Arc::clone(&self.trail), idle_io: self.idle_io };
        let export = DiskExport { file, slot, policy: PageCachePolicy::default() };
        let download = Download::start(export, parts, limits, self.metrics.bytes_served());
        download.map_err(|cause| lost(&disk, cause))
    }

    /// Writes the audit's summaries regularly, until `stop`.
    pub(crate) async fn write_audit(self: Arc<Self>, stop: CancellationToken) {
        let (mut recorded, mut rounds) = (Instant::now(), rounds(AUDIT_INTERVAL));
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if recorded.elapsed() >= ROUND_OF_LINES {
                recorded = Instant::now();
                audit::record_running(&self.trail, &self.admission.exports);
            }
            self.trail.write_due();
        }
    }

    /// Writes the unwritten rest of the audit, and records running downloads as cut: they end with the service.
    pub fn finish_audit(&self) {
        audit::record_stop(&self.trail, &self.admission.exports);
        self.trail.write_all();
    }
}
