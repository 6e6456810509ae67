//! What is running, what waits, how full it is: for people, and for those who watch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::line::{Entry, Line};
use super::reads::Export;
use super::{App, Error};
use crate::auth::Session;
use crate::model::VmId;
use crate::wire;

/// What of the status is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusQuery {
    /// What each snapshot costs as well.
    pub cost: bool,
    /// Of this VM alone.
    pub vm: Option<VmId>,
}

/// A snapshot that is being made, or is to be.
pub(super) struct Creation {
    pub vm: VmId,
    pub user: String,
}

impl App {
    /// The status, as of now.
    ///
    /// # Errors
    /// [`Error::Store`]; with costs also [`Error::Refused`], [`Error::NotFound`].
    pub async fn status(self: &Arc<Self>, session: &Session, query: StatusQuery) -> Result<wire::ServiceStatus, Error> {
        let snapshots = if query.cost { Some(self.costs(query.vm).await?) } else { None };
        let listed = self.list_repositories(session).await?;
        let repositories = self.blocking(move |app| app.with_policy(listed)).await?;
        Ok(wire::ServiceStatus {
            version: env!("CARGO_PKG_VERSION"),
            at: wire::time(jiff::Timestamp::now()),
            creates: queue(&self.creations, |creation, waited| wire::Create {
                vm_id: creation.vm.to_string(),
                user: creation.user.clone(),
                seconds: waited.as_secs_f64(),
            }),
            exports: queue(&self.exports, export),
            repositories,
            snapshots,
        })
    }

    fn with_policy(&self, listed: Vec<wire::Repository>) -> Result<Vec<wire::RepositoryStatus>, Error> {
        let snapshots = self.store.snapshots()?;
        let status = |repository: wire::Repository| {
            let in_it = |id: &&crate::model::RepositoryId| id.as_str() == repository.id;
            let count = snapshots.iter().filter(|snapshot| snapshot.repositories().iter().any(in_it)).count();
            let floor = repository.total_bytes.map(|total| self.policy.min_free_space.of(total));
            wire::RepositoryStatus { snapshots: count, min_free_bytes: floor, repository }
        };
        Ok(listed.into_iter().map(status).collect())
    }
}

fn queue<T, W>(line: &Line<T>, told: impl Fn(&T, Duration) -> W) -> wire::Queue<W> {
    let mut queue = wire::Queue { limit: line.limit(), running: Vec::new(), waiting: Vec::new() };
    line.each(|Entry { what, since, works }| {
        let one = told(what, since.elapsed());
        if *works { queue.running.push(one) } else { queue.waiting.push(one) }
    });
    queue
}

fn export(export: &Export, since: Duration) -> wire::Export {
    let done = export.done.load(Ordering::Relaxed);
    let rate = done as f64 / since.as_secs_f64().max(0.001);
    wire::Export {
        vm_id: export.vm.to_string(),
        snapshot_id: export.snapshot.to_string(),
        disk: export.disk.to_string(),
        user: export.user.clone(),
        address: export.address.map(|address| address.to_string()),
        seconds: since.as_secs_f64(),
        bytes_total: export.total,
        bytes_done: done,
        bytes_per_second: rate as u64,
        seconds_left: (done > 0).then(|| ((export.total.saturating_sub(done)) as f64 / rate).ceil() as u64),
    }
}
