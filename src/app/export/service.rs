//! Downloads and checksums of disks.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::audit::{self, EXPORT};
use super::block_export::DiskExport;
use super::download::Download;
use super::pieces::Part;
use super::rate_limit::ConnectionLimits;
use super::slot::ExportSlot;
use crate::app::Error;
use crate::app::admission::{Admission, Export, ExportClient, ExportDetails, ExportPermit};
use crate::app::audit::{Actor, AuditTrail, Outcome, ROUND_OF_LINES};
use crate::app::changeable::Changeable;
use crate::app::common::Common;
use crate::app::files::{OpenDisk, lost};
use crate::app::inventory::Inventory;
use crate::app::session::Sessions;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::app::tickets::Tickets;
use crate::auth::{BadToken, Session};
use crate::config;
use crate::metrics::Metrics;
use crate::model::AccessRules;
use crate::repository::PageCachePolicy;

/// How often the audit's summaries are checked.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);

/// Sends disks to clients.
pub struct Exports {
    admission: Arc<Admission>,
    trail: Arc<AuditTrail>,
    metrics: Arc<Metrics>,
    config: Changeable<config::Export>,
    inventory: Arc<Inventory>,
    sessions: Arc<Sessions>,
    tickets: Arc<Tickets>,
    /// The access rules, if they were changed since the start.
    changed_access: RwLock<Option<Arc<AccessRules>>>,
    tasks: Tasks,
}

impl Service for Exports {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Exports {
    pub(crate) fn new(
        common: &Common,
        sessions: Arc<Sessions>,
        tickets: Arc<Tickets>,
        config: Changeable<config::Export>,
    ) -> Self {
        let Common { inventory, admission, trail, metrics, tasks, .. } = common.clone();
        let changed_access = RwLock::default();
        Self { admission, trail, metrics, config, inventory, sessions, tickets, changed_access, tasks }
    }

    /// Waits for a slot, then starts to read `parts` of a disk, which are `ranges` ranges, for `client`.
    ///
    /// # Errors
    /// [`Error::Refused`] if no slot becomes free in time; [`Error::NoSession`] if the token was revoked meanwhile, and
    /// [`Error::NotFound`] if the ticket of the request has ended; [`Error::Forbidden`] if the access rules were changed
    /// meanwhile; [`Error::SnapshotLost`], [`Error::Io`] if the first piece cannot be read.
    pub async fn download(
        self: &Arc<Self>,
        session: &Session,
        disk: OpenDisk,
        (parts, ranges): (Vec<Part>, u64),
        client: Arc<dyn ExportClient>,
        limits: ConnectionLimits,
    ) -> Result<Download, Error> {
        let OpenDisk { snapshot: (vm, snapshot), annotations, file, disk, in_use, .. } = disk;
        let (actor, total) = (Actor::from(session), parts.iter().map(Part::len).sum());
        let (name, is_whole_disk) = (disk.name.clone(), total == file.size());
        let session = session.clone();
        let details = ExportDetails {
            vm,
            snapshot,
            disk: name,
            annotations,
            session,
            actor: actor.clone(),
            total,
            ranges,
            is_whole_disk,
        };
        let export = Export::new(details, file.executor().clone(), client, in_use);
        let name = export.name();
        let permit = match self.admission.admit_export(export).await {
            Ok(permit) => self.permitted(permit).await,
            refused => refused,
        };
        if permit.is_err() {
            let outcome = Outcome::of(&permit);
            self.metrics.export_ended(outcome.name);
            self.trail.without_effect(&actor, EXPORT, name, outcome);
        }
        let (trail, metrics) = (Arc::clone(&self.trail), Arc::clone(&self.metrics));
        let slot = ExportSlot { permit: permit?, trail, metrics, idle_io: self.config.get().is_idle };
        let export = DiskExport { file, slot, policy: PageCachePolicy::default() };
        let download = Download::start(export, parts, limits, self.metrics.bytes_served());
        download.map_err(|cause| lost(&disk, cause))
    }

    /// The permit, if the user may still have the download: since it was requested, the token may have been revoked, the
    /// ticket ended, or the access rules changed. What changes from now on ends the download.
    async fn permitted(self: &Arc<Self>, permit: ExportPermit) -> Result<ExportPermit, Error> {
        let session = permit.work().details.session.clone();
        self.tickets.recheck(&session).await?;
        if self.sessions.is_revoked(&session) {
            return Err(BadToken.into());
        }
        let Some(rules) = self.changed_access() else { return Ok(permit) };
        self.run_inline_or_blocking(move |exports| exports.check(permit.work(), &rules).map(|()| permit)).await
    }

    fn check(&self, export: &Export, rules: &AccessRules) -> Result<(), Error> {
        let ExportDetails { vm, annotations, session, .. } = &export.details;
        self.inventory.check(&session.under(rules), vm, Some(annotations))
    }

    fn changed_access(&self) -> Option<Arc<AccessRules>> {
        self.changed_access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the access rules, and ends the running downloads that they do not permit.
    pub(crate) fn set_access(self: &Arc<Self>, rules: Arc<AccessRules>) {
        *self.changed_access.write().unwrap_or_else(PoisonError::into_inner) = Some(rules);
        self.tasks.spawn(Arc::clone(self).end_unpermitted());
    }

    async fn end_unpermitted(self: Arc<Self>) {
        let Some(rules) = self.changed_access() else { return };
        // A download that starts later is checked when it gets its slot.
        let mut running = Vec::new();
        self.admission.exports.each(|entry| running.extend(entry.is_running.then(|| Arc::clone(&entry.work))));
        let ended = self.blocking(move |exports| {
            for export in running {
                match exports.check(&export, &rules) {
                    Ok(()) => {}
                    Err(Error::Forbidden { .. } | Error::NotFound(_) | Error::NoVm) => {
                        let (disk, user) = (export.name(), export.details.actor.user());
                        tracing::warn!(disk, ?user, "ending a download: the user's roles no longer permit it");
                        export.end("the user's roles no longer permit it");
                    }
                    // Without the name of the VM, it is unknown whether they do.
                    Err(error) => tracing::warn!(disk = export.name(), %error, "not ending a download"),
                }
            }
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "cannot check running downloads against the changed access rules");
        }
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
