//! Checks and copies the database while the service runs.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::schedule::is_due;
use crate::api;
use crate::app::Error;
use crate::app::admission::Admission;
use crate::app::audit::Actor;
use crate::app::snapshots::Adopter;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::auth::Session;
use crate::metrics::Metrics;
use crate::store::{Rebuild, Store, StoreError};

/// How often the service finds out whether a check is due.
const INTERVAL: Duration = Duration::from_secs(60);

/// What a rebuilt database does not have, because the manifests do not have it.
const LOST: [&str; 6] = ["expiries", "leases", "idempotency_keys", "pending_post_hooks", "proofs", "checksums"];

/// The last check of the database.
struct Check {
    at: Instant,
    time: jiff::Timestamp,
    /// What it found, if anything.
    problem: Option<Problem>,
}

struct Problem {
    /// Whether the database is damaged. Otherwise the check failed: the file or a record could not be read.
    is_damage: bool,
    cause: String,
}

/// Checks, rebuilds and copies the database.
pub struct Database {
    pub(super) adopter: Arc<Adopter>,
    admission: Arc<Admission>,
    pub(super) store: Store,
    metrics: Arc<Metrics>,
    last: Mutex<Check>,
    /// `db_rebuild` of the config.
    may_rebuild: bool,
    /// Cancelled if a restart of the service will rebuild the database.
    restart: CancellationToken,
    /// Held while a copy is made: one at a time.
    copying: Mutex<()>,
    pub(super) tasks: Tasks,
}

impl Service for Database {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Database {
    /// The store has just been opened, and was checked with that.
    pub(crate) fn new(
        adopter: Arc<Adopter>,
        admission: Arc<Admission>,
        store: Store,
        metrics: Arc<Metrics>,
        may_rebuild: bool,
        tasks: Tasks,
    ) -> Self {
        let (at, time) = (Instant::now(), jiff::Timestamp::now());
        metrics.database_checked(time.as_second(), false);
        let last = Mutex::new(Check { at, time, problem: None });
        let (restart, copying) = (CancellationToken::new(), Mutex::default());
        Self { adopter, admission, store, metrics, last, may_rebuild, restart, copying, tasks }
    }

    fn last(&self) -> MutexGuard<'_, Check> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the database each night, and continues an unfinished rebuilding, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let is_idle = self.admission.is_idle();
            let checked = self.blocking(move |database| {
                let (since, hour) = (database.last().at.elapsed(), jiff::Zoned::now().hour());
                if is_due(since, hour, is_idle) || database.is_closed_by_damage() {
                    database.check();
                }
                Ok(())
            });
            if let Err(error) = checked.await {
                tracing::error!(%error, "the check of the database ended early");
            }
            // A rebuilding that is complete has nothing to do.
            if stop.run_until_cancelled(self.continue_rebuilding()).await.is_none() {
                return;
            }
        }
    }

    /// Whether a request met damage since the last check: then the database is closed.
    fn is_closed_by_damage(&self) -> bool {
        !self.is_damaged() && matches!(self.store.check(), Err(StoreError::Damaged(_)))
    }

    /// Checks the database now.
    fn check(&self) {
        let started = Instant::now();
        let problem = self.store.verify().err().map(|error| Problem {
            // A record that this version cannot read is no damage: a new start would find the same.
            is_damage: matches!(error, StoreError::Damaged(_)),
            cause: error.to_string(),
        });
        let seconds = started.elapsed().as_secs_f64();
        match &problem {
            None => tracing::info!(seconds, "the database has been checked: it is whole"),
            Some(Problem { is_damage: true, cause }) => tracing::error!(cause, "the database is damaged"),
            Some(Problem { is_damage: false, cause }) => tracing::error!(cause, "the check of the database failed"),
        }
        let (is_damaged, time) = (problem.as_ref().is_some_and(|it| it.is_damage), jiff::Timestamp::now());
        self.metrics.database_checked(time.as_second(), is_damaged);
        *self.last() = Check { at: Instant::now(), time, problem };
        if is_damaged && self.may_rebuild {
            tracing::error!("stopping: the next start sets the damaged database aside and rebuilds it (db_rebuild)");
            self.restart.cancel();
        }
    }

    /// Waits until the service should stop, because its next start will rebuild the database.
    pub async fn restart_needed(&self) {
        self.restart.cancelled().await;
    }

    /// Whether the service should stop for that.
    pub fn is_restart_needed(&self) -> bool {
        self.restart.is_cancelled()
    }

    /// Whether the last check found damage.
    pub(crate) fn is_damaged(&self) -> bool {
        self.last().problem.as_ref().is_some_and(|problem| problem.is_damage)
    }

    /// For `GET /status`.
    pub(crate) fn status(&self) -> Result<api::DatabaseStatus, Error> {
        let rebuild = self.store.rebuild()?;
        let was_damaged = rebuild != Rebuild::default();
        let last = self.last();
        Ok(api::DatabaseStatus {
            checked_at: api::time(last.time),
            status: if last.problem.is_none() { api::Status::Ok } else { api::Status::Error },
            problem: last.problem.as_ref().map(|problem| problem.cause.clone()),
            rebuilding: rebuild.started.is_some(),
            rebuilt_at: rebuild.done.map(api::time),
            lost: if was_damaged { LOST.map(str::to_owned).to_vec() } else { Vec::new() },
        })
    }

    /// A copy of the database as it is now. The file disappears when it is closed.
    ///
    /// # Errors
    /// [`Error::NoRoomForCopy`], [`Error::Store`].
    pub async fn copy(self: &Arc<Self>, session: &Session) -> Result<File, Error> {
        let actor = Actor::from(session);
        let copy = self.blocking(|database| {
            let _one_at_a_time = database.copying.lock().unwrap_or_else(PoisonError::into_inner);
            database.store.copy().map_err(|error| match error {
                StoreError::NoRoom { needed, free } => Error::NoRoomForCopy { needed, free },
                error => error.into(),
            })
        });
        let copy = copy.await;
        actor.did("backup-db", "", &copy);
        copy
    }
}
