//! The status and readiness of the service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::config_state::ConfigState;
use super::exclusive_usage::ExclusiveUsage;
use super::tls_state::TlsState;
use super::warnings::Warnings;
use crate::api;
use crate::app::Error;
use crate::app::admission::{Admission, AdmissionQueue, Entry, Export, ExportDetails, Queued};
use crate::app::audit::{self, Head};
use crate::app::common::Common;
use crate::app::confinement::Confinement;
use crate::app::database::Database;
use crate::app::files::FileOpener;
use crate::app::hooks::{Pending, PendingHooks};
use crate::app::inventory::{Inventory, RepositorySet, RepositoryState, Unsearched};
use crate::app::notifications::Notifications;
use crate::app::session::Sessions;
use crate::app::snapshots::{Reconciler, Recovery};
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::metrics::Metrics;
use crate::model::{Permission, Snapshot, VmId};
use crate::repository::{Mounted, Repository};
use crate::store::Store;

/// The options of a status request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusQuery {
    /// Include the cost of each snapshot.
    pub cost: bool,
    /// Only the snapshots of this VM.
    pub vm: Option<VmId>,
}

/// The services that the status describes.
pub(crate) struct Observed {
    pub(crate) hooks: Arc<PendingHooks>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) database: Arc<Database>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) confinement: Arc<Confinement>,
    pub(crate) warnings: Arc<Warnings>,
}

/// Status and readiness.
pub struct Ops {
    pub(super) observed: Observed,
    pub(super) inventory: Arc<Inventory>,
    pub(super) admission: Arc<Admission>,
    usage: Arc<ExclusiveUsage>,
    pub tls: TlsState,
    pub config: ConfigState,
    notifications: Arc<Notifications>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Store,
    tasks: Tasks,
}

impl Service for Ops {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Ops {
    pub(crate) fn new(common: &Common, observed: Observed, files: Arc<FileOpener>) -> Self {
        let Common { inventory, admission, notifications, metrics, store, tasks, .. } = common.clone();
        let usage = Arc::new(ExclusiveUsage::new(common, files));
        let (tls, config) = (TlsState::default(), ConfigState::default());
        Self { observed, inventory, admission, usage, tls, config, notifications, metrics, store, tasks }
    }

    /// The current status, as far as it concerns VMs that the user may see. Log-ins, cost requests and
    /// warnings concern no VM; only administrators see them.
    ///
    /// # Errors
    /// [`Error::Store`]; with costs also [`Error::Forbidden`], [`Error::Refused`], [`Error::NotFound`].
    pub async fn status(self: &Arc<Self>, session: &Session, query: StatusQuery) -> Result<api::ServiceStatus, Error> {
        let reader = session.needing(Permission::Read);
        if query.cost && !session.grants().has(Permission::Read) {
            return Err(Error::forbidden(Permission::Read, "to calculate costs"));
        }
        let snapshots = if query.cost { Some(self.usage.costs(&reader, query.vm).await?) } else { None };
        let (viewer, sees_all) = (session.clone(), session.grants().has_for_all(Permission::Administer));
        let found = self.blocking(move |ops| {
            let view = ops.inventory.view(&viewer)?;
            let (snapshots, found) = (ops.store.snapshots()?, ops.inventory.repositories());
            // Without a record, a snapshot has no labels.
            let is_visible = |vm: &str, id: Option<&str>| {
                let snapshot = snapshots.iter().find(|snapshot| id.is_some_and(|id| snapshot.id.to_string() == id));
                let annotations = snapshot.map(|snapshot| snapshot.annotations.clone()).unwrap_or_default();
                view.is_unlimited() || vm.parse::<VmId>().is_ok_and(|vm| view.includes_of(&vm, &annotations))
            };
            let describe = |(known, mounted)| ops.repository_status(known, mounted, &snapshots);
            let repositories = found.with_mounts().map(describe).collect();
            let (mut leftovers, mut owed_hooks) =
                (ops.observed.recovery.leftovers()?, pending_hooks(ops.observed.hooks.entries()?));
            leftovers.retain(|leftover| is_visible(&leftover.vm_id, Some(&leftover.id)));
            owed_hooks
                .retain(|owed| is_visible(owed.vm_id.as_deref().unwrap_or_default(), owed.snapshot_id.as_deref()));
            let sessions = if sees_all { Some(ops.observed.sessions.counts()?) } else { None };
            let webhooks = if sees_all { Some(ops.notifications.status()?) } else { None };
            Ok((
                repositories,
                (ops.observed.database.status(sees_all)?, sessions, webhooks),
                leftovers,
                owed_hooks,
                view,
            ))
        });
        let (repositories, (database, sessions, webhooks), leftovers, owed_hooks, view) = found.await?;
        Ok(api::ServiceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: api::time(jiff::Timestamp::now()),
            log_ins: self.log_ins(sees_all),
            cost_requests: queue(&self.admission.cost_requests, |request, waited| {
                let user = request.user.clone();
                sees_all.then_some(api::CostRequest { user, seconds: waited.as_secs_f64() })
            }),
            creates: queue(&self.admission.creations, |creation, waited| {
                let visible = creation.vms.iter().filter(|vm| view.includes_of(vm, &creation.annotations));
                let vm_ids: Vec<_> = visible.map(ToString::to_string).collect();
                let (user, seconds) = (creation.user.clone(), waited.as_secs_f64());
                Some(api::Create { vm_id: vm_ids.first()?.clone(), vm_ids, user, seconds })
            }),
            exports: queue(&self.admission.exports, |work, since| {
                let ExportDetails { vm, annotations, .. } = &work.details;
                view.includes_of(vm, annotations).then(|| export(work, since))
            }),
            repositories,
            database: Some(database),
            tls: sees_all.then(|| self.tls.status()),
            config: sees_all.then(|| self.config.status()),
            leftovers,
            owed_hooks,
            sessions,
            audit: audit::head().map(|Head { seq, hash }| api::AuditHead { seq, hash }),
            confinement: sees_all.then(|| self.observed.confinement.describe()),
            warnings: sees_all.then(|| self.observed.warnings.list()),
            webhooks,
            snapshots,
        })
    }

    /// The log-ins in both queues.
    fn log_ins(&self, sees_all: bool) -> api::Queue<api::LogIn> {
        let [mut all, reserved] = [&self.admission.log_ins, &self.admission.reserved_log_ins].map(|log_ins| {
            queue(log_ins, |log_in, waited| {
                let address = log_in.address.map(|address| address.to_string());
                sees_all.then_some(api::LogIn { address, seconds: waited.as_secs_f64() })
            })
        });
        all.running.extend(reserved.running);
        all.waiting.extend(reserved.waiting);
        all
    }

    /// Unlike the list of repositories, this does not test clone support, because it must respond while a repository
    /// hangs.
    pub(super) fn repository_status(
        &self,
        known: &RepositoryState,
        mounted: Result<(&Repository, Mounted), String>,
        snapshots: &[Snapshot],
    ) -> api::RepositoryStatus {
        let in_it = |snapshot: &&Snapshot| snapshot.repositories().iter().any(|id| id.as_str() == known.name);
        let entry = known.entry.as_ref();
        let space = mounted.as_ref().ok().map(|(_, mounted)| mounted.space);
        let mount_point = known.repository.as_ref().ok().map(|repository| repository.mount_point().to_path_buf());
        let reason = mounted.map_or_else(Some, |(_, mounted)| mounted.restriction());
        api::RepositoryStatus {
            id: known.name.clone(),
            alias: entry.and_then(|entry| entry.alias.clone()),
            mount_point: mount_point.map(|path| path.display().to_string()),
            total_bytes: space.map(|space| space.total),
            free_bytes: space.map(|space| space.free),
            min_free_bytes: space.map(|space| self.admission.policy.limits.get().min_free_space.of(space.total)),
            snapshots: snapshots.iter().filter(in_it).count(),
            unknown_snapshots: self.observed.reconciler.unknown_in(&known.name).map(|count| count.lost + count.others),
            status: if reason.is_none() { api::Status::Ok } else { api::Status::Error },
            reason,
        }
    }

    /// The problems that keep the service from working. Unauthenticated clients can read them, so they contain ids of
    /// repositories but no paths.
    pub async fn readiness(self: &Arc<Self>) -> Result<api::Health, Error> {
        self.blocking(|ops| {
            let problems = ops.problems(&ops.inventory.repositories(), true);
            let status = if problems.is_empty() { api::Status::Ok } else { api::Status::Error };
            Ok(api::Health { status, problems })
        })
        .await
    }

    /// The problems of [`Ops::readiness`]. If `logs`, the log has the causes.
    pub(super) fn problems(&self, found: &RepositorySet, logs: bool) -> Vec<String> {
        let mut problems = Vec::new();
        match (self.observed.reconciler.check_database(), self.store.check()) {
            (None, Ok(())) => {}
            (Some(trouble), _) => problems.push(trouble.to_string()),
            (None, Err(error)) => {
                if logs {
                    tracing::error!(%error, "not ready");
                }
                problems.push("the database cannot be read".to_owned());
            }
        }
        if self.observed.database.is_damaged() {
            problems.push("the database is damaged".to_owned());
        }
        for (known, mounted) in found.with_mounts() {
            let name = &known.name;
            match (&known.repository, mounted) {
                (_, Ok((_, mounted))) if mounted.space.is_read_only => {
                    problems.push(format!("the repository {name} is read-only"));
                }
                (_, Ok((_, mounted))) if mounted.keeps_locks_local => {
                    problems.push(format!("the repository {name} is mounted with localflocks"));
                }
                (_, Ok(_)) => {}
                (Ok(_), Err(cause)) => {
                    if logs {
                        tracing::warn!(repository = name, cause, "not ready");
                    }
                    problems.push(format!("the repository {name} is unavailable"));
                }
                (Err(_), _) => problems.push(format!("the repository {name} cannot be used")),
            }
        }
        if self.observed.reconciler.has_lost_snapshots().unwrap_or_default() {
            problems.push("snapshots in a repository are not in the database".to_owned());
        }
        if *self.inventory.unsearched() != Unsearched::Nothing {
            problems.push("the database is being rebuilt".to_owned());
        }
        if found.problem.is_some() {
            problems.push("the list of repositories cannot be read".to_owned());
        }
        if self.tls.has_expired_list() {
            problems.push("a revocation list of clients' certificates has expired".to_owned());
        }
        problems
    }
}

/// Hooks of operations that still run are not pending yet.
pub(super) fn pending_hooks(pending: Pending) -> Vec<api::OwedHooks> {
    let failed =
        pending.readable.into_iter().filter(|(_, hooks)| hooks.attempts > 0).map(|(_, hooks)| api::OwedHooks {
            hooks: hooks.names(),
            operation: Some(hooks.event.operation.as_str().to_owned()),
            snapshot_id: Some(hooks.event.snapshot_id),
            vm_id: Some(hooks.event.vm.name),
            attempts: hooks.attempts,
            reason: None,
        });
    let unreadable = pending.unreadable.into_iter().map(|(_, reason)| api::OwedHooks {
        snapshot_id: None,
        vm_id: None,
        operation: None,
        hooks: Vec::new(),
        attempts: 0,
        reason: Some(reason),
    });
    failed.chain(unreadable).collect()
}

/// The entries of a queue, without those that `describe` leaves out.
fn queue<T: Queued, W>(queue: &AdmissionQueue<T>, describe: impl Fn(&T, Duration) -> Option<W>) -> api::Queue<W> {
    let mut listed = api::Queue { limit: queue.limit(), running: Vec::new(), waiting: Vec::new() };
    queue.each(|Entry { work, since, is_running, .. }| {
        let list = if *is_running { &mut listed.running } else { &mut listed.waiting };
        list.extend(describe(work, since.elapsed()));
    });
    listed
}

fn export(export: &Export, since: Duration) -> api::Export {
    let ExportDetails { vm, snapshot, disk, actor, total, .. } = &export.details;
    let done = export.done.load(Ordering::Relaxed);
    let rate = done as f64 / since.as_secs_f64().max(0.001);
    api::Export {
        vm_id: vm.to_string(),
        snapshot_id: snapshot.to_string(),
        disk: disk.to_string(),
        user: actor.user().to_owned(),
        address: actor.address().map(|address| address.to_string()),
        since: api::time(jiff::Timestamp::now() - since),
        seconds: since.as_secs_f64(),
        bytes_total: *total,
        bytes_done: done,
        bytes_per_second: rate as u64,
        seconds_left: (done > 0).then(|| ((total.saturating_sub(done)) as f64 / rate).ceil() as u64),
    }
}
