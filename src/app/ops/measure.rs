//! Reads the state of the service for the metrics, so that a scrape waits neither for a repository nor for the database.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::service::{Ops, pending_hooks};
use crate::api;
use crate::app::Error;
use crate::app::admission::{AdmissionQueue, Queued};
use crate::app::tasks::{Service, rounds};
use crate::metrics::{QueueLength, RepositoryState, SnapshotAges, State};

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(5);

impl Ops {
    /// Reads the state regularly, until `stop`. If a repository hangs, this waits, and the scrapes do not.
    pub(crate) async fn measure(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        let mut is_readable = true;
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let Some(state) = stop.run_until_cancelled(self.blocking(Self::state)).await else { return };
            let was_readable = std::mem::replace(&mut is_readable, state.is_ok());
            match state {
                Ok(state) => self.metrics.observe(state),
                Err(error) => {
                    self.metrics.observe_failure();
                    if was_readable {
                        tracing::error!(%error, "cannot read the state for the metrics; keeping the last one");
                    }
                }
            }
        }
    }

    fn state(&self) -> Result<State, Error> {
        let found = self.inventory.repositories();
        let snapshots = self.store.snapshots()?;
        let repositories = found.with_mounts().map(|(known, mounted)| {
            let status = self.repository_status(known, mounted, &snapshots);
            RepositoryState {
                is_up: matches!(status.status, api::Status::Ok),
                id: status.id,
                total_bytes: status.total_bytes,
                free_bytes: status.free_bytes,
                min_free_bytes: status.min_free_bytes,
                snapshots: status.snapshots,
                unknown_snapshots: status.unknown_snapshots,
            }
        });
        let repositories = repositories.collect();
        let now = jiff::Timestamp::now();
        let created = snapshots.iter().map(|snapshot| snapshot.created_at.as_second());
        let (sessions, confinement) = (self.observed.sessions.counts()?, self.observed.confinement.describe());
        Ok(State {
            at: now.as_second(),
            is_ready: self.problems(&found, false).is_empty(),
            repositories,
            ages: SnapshotAges::at(now.as_second(), created),
            owed_hooks: pending_hooks(self.observed.hooks.entries()?).len(),
            leftovers: self.observed.recovery.leftovers()?.len(),
            leases: self.store.retentions().leases(now)?,
            renewable_log_ins: sessions.renewable,
            revocations: sessions.revocations,
            confined: vec![
                ("capabilities", confinement.capabilities),
                ("files", confinement.files),
                ("system-calls", confinement.system_calls),
            ],
        })
    }

    /// Puts the lengths of the queues into the metrics.
    pub fn measure_queues(&self) {
        let admission = &self.admission;
        let [mut log_ins, reserved] =
            [&admission.log_ins, &admission.reserved_log_ins].map(|queue| length("log_ins", queue));
        log_ins.running += reserved.running;
        log_ins.waiting += reserved.waiting;
        self.metrics.queues(&[
            log_ins,
            length("cost_requests", &admission.cost_requests),
            length("creates", &admission.creations),
            length("exports", &admission.exports),
        ]);
    }
}

/// The length of a queue. Its name is that in the status.
fn length<T: Queued>(name: &'static str, queue: &AdmissionQueue<T>) -> QueueLength {
    let mut length = QueueLength { name, running: 0, waiting: 0, limit: queue.limit() };
    queue.each(|entry| *(if entry.is_running { &mut length.running } else { &mut length.waiting }) += 1);
    length
}
