//! What is running, what waits, how full it is: for people, and for those who watch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::api;
use crate::app::admission::queue::{AdmissionQueue, Entry, Queued, Share};
use crate::app::export::slot::Export;
use crate::app::hooks::pending::Debts;
use crate::app::inventory::repositories::RepositoryState;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::model::{Snapshot, VmId};
use crate::repository::{Mounted, Repository};

/// What of the status is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusQuery {
    /// What each snapshot costs as well.
    pub cost: bool,
    /// Of this VM alone.
    pub vm: Option<VmId>,
}

/// A snapshot that is being made, or is to be.
pub(crate) struct Creation {
    pub vm: VmId,
    pub user: String,
}

impl Queued for Creation {
    /// First come, first served.
    fn share(&self) -> Option<Share> {
        None
    }
}

impl App {
    /// The status, as of now.
    ///
    /// # Errors
    /// [`Error::Store`]; with costs also [`Error::Refused`], [`Error::NotFound`].
    pub async fn status(self: &Arc<Self>, _session: &Session, query: StatusQuery) -> Result<api::ServiceStatus, Error> {
        let snapshots = if query.cost { Some(self.costs(query.vm).await?) } else { None };
        let repositories = self.blocking(|app| {
            let (snapshots, found) = (app.store.snapshots()?, app.repositories.found());
            let repositories =
                found.with_mounts().map(|(known, mounted)| app.repository_status(known, mounted, &snapshots)).collect();
            Ok((repositories, app.leftovers()?))
        });
        let (repositories, leftovers) = repositories.await?;
        Ok(api::ServiceStatus {
            version: env!("CARGO_PKG_VERSION"),
            at: api::time(jiff::Timestamp::now()),
            creates: queue(&self.creations, |creation, waited| api::Create {
                vm_id: creation.vm.to_string(),
                user: creation.user.clone(),
                seconds: waited.as_secs_f64(),
            }),
            exports: queue(&self.exports, export),
            repositories,
            leftovers,
            owed_hooks: self.blocking(|app| Ok(owed_hooks(app.debts()?))).await?,
            snapshots,
        })
    }

    /// Nothing is tried out here, as in the list of repositories: this has to answer also while one of
    /// them hangs.
    fn repository_status(
        &self,
        known: &RepositoryState,
        mounted: Result<(&Repository, Mounted), String>,
        snapshots: &[Snapshot],
    ) -> api::RepositoryStatus {
        let in_it = |snapshot: &&Snapshot| snapshot.repositories().iter().any(|id| id.as_str() == known.name);
        let entry = known.entry.as_ref();
        let space = mounted.as_ref().ok().map(|(_, mounted)| mounted.space);
        let mount_point = known.repository.as_ref().ok().map(|repository| repository.mount_point().to_path_buf());
        let is_read_only = mounted.as_ref().is_ok_and(|(_, mounted)| mounted.space.is_read_only);
        let reason = mounted.err().or_else(|| is_read_only.then(|| "is mounted read-only".to_owned()));
        api::RepositoryStatus {
            id: known.name.clone(),
            alias: entry.and_then(|entry| entry.alias.clone()),
            mount_point: mount_point.map(|path| path.display().to_string()),
            total_bytes: space.map(|space| space.total),
            free_bytes: space.map(|space| space.free),
            min_free_bytes: space.map(|space| self.policy.min_free_space.of(space.total)),
            snapshots: snapshots.iter().filter(in_it).count(),
            unknown_snapshots: self.unknown_snapshots.of(&known.name).map(|count| count.lost + count.others),
            status: if reason.is_none() { api::Status::Ok } else { api::Status::Error },
            reason,
        }
    }
}

/// What is being done now is not owed yet.
fn owed_hooks(debts: Debts) -> Vec<api::OwedHooks> {
    let failed = debts.readable.into_iter().filter(|(_, debt)| debt.attempts > 0).map(|(_, debt)| api::OwedHooks {
        hooks: debt.names(),
        operation: Some(debt.event.operation.as_str()),
        snapshot_id: Some(debt.event.snapshot_id),
        vm_id: Some(debt.event.vm.name),
        attempts: debt.attempts,
        reason: None,
    });
    let unreadable = debts.unreadable.into_iter().map(|(_, reason)| api::OwedHooks {
        snapshot_id: None,
        vm_id: None,
        operation: None,
        hooks: Vec::new(),
        attempts: 0,
        reason: Some(reason),
    });
    failed.chain(unreadable).collect()
}

fn queue<T: Queued, W>(line: &AdmissionQueue<T>, told: impl Fn(&T, Duration) -> W) -> api::Queue<W> {
    let mut queue = api::Queue { limit: line.limit(), running: Vec::new(), waiting: Vec::new() };
    line.each(|Entry { what, since, works, .. }| {
        let one = told(what, since.elapsed());
        if *works { queue.running.push(one) } else { queue.waiting.push(one) }
    });
    queue
}

fn export(export: &Export, since: Duration) -> api::Export {
    let done = export.done.load(Ordering::Relaxed);
    let rate = done as f64 / since.as_secs_f64().max(0.001);
    api::Export {
        vm_id: export.vm.to_string(),
        snapshot_id: export.snapshot.to_string(),
        disk: export.disk.to_string(),
        user: export.actor.user().to_owned(),
        address: export.actor.address().map(|address| address.to_string()),
        since: api::time(jiff::Timestamp::now() - since),
        seconds: since.as_secs_f64(),
        bytes_total: export.total,
        bytes_done: done,
        bytes_per_second: rate as u64,
        seconds_left: (done > 0).then(|| ((export.total.saturating_sub(done)) as f64 / rate).ceil() as u64),
    }
}
