//! Checks and copies the database while the service runs.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::schedule::{Load, Retry, is_due};
use crate::api;
use crate::app::Error;
use crate::app::admission::Admission;
use crate::app::audit::Actor;
use crate::app::common::Common;
use crate::app::error::Refusal;
use crate::app::inventory::{Inventory, Unsearched};
use crate::app::snapshots::Adopter;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::auth::Session;
use crate::metrics::Metrics;
use crate::store::{Rebuild, Store, StoreError, Unreadable};

/// How often the service finds out whether a check is due.
const INTERVAL: Duration = Duration::from_secs(60);

/// Copies of the database that are made or sent at a time. Each takes as much space as the database.
const COPIES: usize = 2;

/// What a rebuilt database does not have, because the manifests do not have it.
const LOST: [&str; 9] = [
    "expiries",
    "leases",
    "idempotency_keys",
    "pending_post_hooks",
    "proofs",
    "checksums",
    "tickets",
    "refresh_tokens",
    "revocations",
];

/// The last check of the database.
struct Check {
    at: Instant,
    time: jiff::Timestamp,
    /// What it found, if anything.
    problem: Option<Problem>,
    /// Whether the last check that ended found damage. One that could not be made says nothing about that.
    is_damaged: bool,
}

#[derive(Debug)]
enum Problem {
    /// The database is damaged.
    Damage(String),
    /// The check ended, and a record could not be read.
    Unreadable(String),
    /// The check could not be made.
    Unchecked(String),
}

impl Problem {
    fn cause(&self) -> &String {
        let (Self::Damage(cause) | Self::Unreadable(cause) | Self::Unchecked(cause)) = self;
        cause
    }
}

/// A copy of the database. The file disappears when it is closed.
pub struct DatabaseCopy {
    file: File,
    /// Held until the copy is sent.
    _permit: OwnedSemaphorePermit,
}

impl Read for DatabaseCopy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// Checks, rebuilds and copies the database.
pub struct Database {
    pub(super) inventory: Arc<Inventory>,
    pub(super) adopter: Arc<Adopter>,
    admission: Arc<Admission>,
    pub(super) store: Store,
    metrics: Arc<Metrics>,
    last: Mutex<Check>,
    /// `db_rebuild` of the config.
    may_rebuild: bool,
    /// Cancelled if a restart of the service will rebuild the database.
    restart: CancellationToken,
    copies: Arc<Semaphore>,
    /// Held during an attempt to rebuild the database.
    pub(super) retry: tokio::sync::Mutex<Retry<Unsearched>>,
    /// Cancelled when the service stops: it ends the rebuilding.
    pub(super) stopping: CancellationToken,
    pub(super) tasks: Tasks,
}

impl Service for Database {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Database {
    /// The store has just been opened, and its pages were checked with that.
    pub(crate) fn new(common: &Common, adopter: Arc<Adopter>, may_rebuild: bool) -> Self {
        let Common { inventory, admission, metrics, store, tasks, .. } = common.clone();
        let last = Mutex::new(Check::now(&metrics, found(store.unreadable()), false));
        let (restart, stopping) = (CancellationToken::new(), CancellationToken::new());
        let (copies, retry) = (Arc::new(Semaphore::new(COPIES)), tokio::sync::Mutex::new(Retry::new()));
        Self {
            inventory,
            adopter,
            admission,
            store,
            metrics,
            last,
            may_rebuild,
            restart,
            copies,
            retry,
            stopping,
            tasks,
        }
    }

    fn last(&self) -> MutexGuard<'_, Check> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the database each night, and continues an unfinished rebuilding, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let _ends_rebuilding = self.stopping.clone().drop_guard();
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let load = self.load();
            let checked = self.blocking(move |database| {
                let (since, hour) = (database.last().at.elapsed(), jiff::Zoned::now().hour());
                if is_due(since, hour, load) || database.is_closed_by_damage() {
                    database.check();
                }
                Ok(())
            });
            if let Err(error) = checked.await {
                tracing::error!(%error, "the check of the database ended early");
            }
            // A rebuilding that is complete has nothing to do.
            if stop.run_until_cancelled(Arc::clone(&self).continue_rebuilding()).await.is_none() {
                return;
            }
        }
    }

    fn load(&self) -> Load {
        match (self.admission.creations.is_empty(), self.admission.exports.is_empty()) {
            (false, _) => Load::Creations,
            (true, false) => Load::Downloads,
            (true, true) => Load::Idle,
        }
    }

    /// Whether a request met damage since the last check: then the database is closed.
    fn is_closed_by_damage(&self) -> bool {
        !self.is_damaged() && matches!(self.store.check(), Err(StoreError::Damaged(_)))
    }

    /// Checks the database now.
    fn check(&self) {
        let started = Instant::now();
        let problem = found(self.store.verify());
        if problem.is_none() {
            tracing::info!(seconds = started.elapsed().as_secs_f64(), "the database has been checked: it is whole");
        }
        let finds_damage = matches!(problem, Some(Problem::Damage(_)));
        let mut last = self.last();
        *last = Check::now(&self.metrics, problem, last.is_damaged);
        drop(last);
        if finds_damage && self.may_rebuild {
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

    /// Whether the last check that ended found damage.
    pub(crate) fn is_damaged(&self) -> bool {
        self.last().is_damaged
    }

    /// For `GET /status`. What was not searched names folders and VMs, so only a user who `sees_all` gets it.
    pub(crate) fn status(&self, sees_all: bool) -> Result<api::DatabaseStatus, Error> {
        let rebuild = self.store.rebuild()?;
        let was_damaged = rebuild != Rebuild::default();
        let last = self.last();
        Ok(api::DatabaseStatus {
            checked_at: api::time(last.time),
            status: if last.problem.is_none() { api::Status::Ok } else { api::Status::Error },
            problem: last.problem.as_ref().map(|problem| problem.cause().clone()),
            rebuilding: rebuild.started.is_some(),
            unsearched: if sees_all { self.inventory.unsearched().describe() } else { Vec::new() },
            rebuilt_at: rebuild.done.map(api::time),
            lost: if was_damaged { LOST.map(str::to_owned).to_vec() } else { Vec::new() },
        })
    }

    /// A copy of the database as it is now.
    ///
    /// # Errors
    /// [`Refusal::TooManyCopies`], [`Error::NoRoomForCopy`], [`Error::Store`].
    pub async fn copy(self: &Arc<Self>, session: &Session) -> Result<DatabaseCopy, Error> {
        let actor = Actor::from(session);
        self.detached(async move |database| {
            let copy = database.make_copy().await;
            actor.did("backup-db", "", &copy);
            copy
        })
        .await
    }

    async fn make_copy(self: &Arc<Self>) -> Result<DatabaseCopy, Error> {
        let permit = Arc::clone(&self.copies).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::TooManyCopies { limit: COPIES })?;
        self.blocking(|database| {
            let (file, unreadable) = database.store.copy().map_err(|error| match error {
                error @ StoreError::NoRoom { .. } => Error::NoRoomForCopy(error),
                error => error.into(),
            })?;
            if let Some(problem) = unreadable.problem() {
                tracing::error!(problem, "the copy of the database has a record that cannot be read");
            }
            Ok(DatabaseCopy { file, _permit: permit })
        })
        .await
    }
}

impl Check {
    /// Records and logs the result of a check that has just ended. `was_damaged`: the one before it.
    fn now(metrics: &Metrics, problem: Option<Problem>, was_damaged: bool) -> Self {
        let (at, time) = (Instant::now(), jiff::Timestamp::now());
        let is_damaged = match &problem {
            None => false,
            Some(Problem::Damage(cause)) => {
                tracing::error!(cause, "the database is damaged");
                true
            }
            Some(Problem::Unreadable(cause)) => {
                tracing::error!(cause, "the check of the database found a problem");
                false
            }
            Some(Problem::Unchecked(cause)) => {
                tracing::error!(cause, was_damaged, "the database could not be checked");
                return Self { at, time, problem, is_damaged: was_damaged };
            }
        };
        metrics.database_checked(time.as_second(), is_damaged);
        Self { at, time, problem, is_damaged }
    }
}

/// The problem that a check has found.
fn found(checked: Result<Unreadable, StoreError>) -> Option<Problem> {
    match checked {
        // A record that this version cannot read is no damage: setting the database aside would lose all other records.
        Ok(unreadable) => Some(Problem::Unreadable(unreadable.problem()?)),
        Err(error @ StoreError::Damaged(_)) => Some(Problem::Damage(error.to_string())),
        Err(error) => Some(Problem::Unchecked(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_that_could_not_be_made_says_nothing_about_damage() {
        let (metrics, unchecked) = (Metrics::default(), || Some(Problem::Unchecked("no room".to_owned())));
        let damaged = Check::now(&metrics, Some(Problem::Damage("page 3".to_owned())), false);
        assert!(damaged.is_damaged);
        let is_reported = || metrics.text().contains("database_damaged 1\n");
        assert!(is_reported());
        let next = Check::now(&metrics, unchecked(), damaged.is_damaged);
        assert!(next.is_damaged && next.problem.is_some() && is_reported());
        assert!(!Check::now(&metrics, None, next.is_damaged).is_damaged && !is_reported());
        assert!(!Check::now(&metrics, unchecked(), false).is_damaged && !is_reported());
    }
}
