//! Conditions that change by themselves: looks at them, and tells webhooks when it gets bad and when it is good again.
//!
//! The state of each condition that was last reported to a webhook is in the database. So a restart reports nothing twice,
//! and a new webhook hears of what is bad already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::warnings::{Warnings, remaining_days};
use crate::api;
use crate::app::Error;
use crate::app::changeable::Changeable;
use crate::app::common::Common;
use crate::app::database::Database;
use crate::app::inventory::{Inventory, RepositoryState};
use crate::app::notifications::{Event, Notifications};
use crate::app::tasks::{Service, Tasks, rounds};
use crate::config::Policy;
use crate::model::EventKind;
use crate::repository::{Mounted, Repository};
use crate::store::{ReportedConditions, Store};

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);

/// A certificate is reported when it ends in fewer than these days; 0: when it has ended.
const STAGES: [i64; 4] = [0, 1, 7, 30];

/// A repository that cannot be used in so many rounds in succession is reported: under load it may be slow for a moment.
const UNAVAILABLE_ROUNDS: u32 = 3;

/// What earlier rounds have seen.
#[derive(Default)]
struct Seen {
    /// The reported states of conditions, once they were read. A condition that is as it should be has none.
    reported: Option<ReportedConditions>,
    /// The same for the time until then.
    unread: ReportedConditions,
    /// Repository → rounds in succession in which it could not be used.
    unavailable: HashMap<String, u32>,
}

/// Looks for changes of conditions.
pub(crate) struct Conditions {
    inventory: Arc<Inventory>,
    database: Arc<Database>,
    warnings: Arc<Warnings>,
    notifications: Arc<Notifications>,
    policy: Changeable<Policy>,
    store: Store,
    seen: Mutex<Seen>,
    /// Webhooks that were added since the last round.
    added: Mutex<Vec<String>>,
    soon: Notify,
    tasks: Tasks,
}

impl Service for Conditions {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Conditions {
    pub(crate) fn new(common: &Common, database: Arc<Database>, warnings: Arc<Warnings>) -> Self {
        let Common { inventory, admission, notifications, store, tasks, .. } = common.clone();
        let policy = admission.policy.limits.clone();
        let (seen, added, soon) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { inventory, database, warnings, notifications, policy, store, seen, added, soon, tasks }
    }

    /// Starts the next round at once, in which webhooks that were `added` hear of all that is bad.
    pub(crate) fn look_soon(&self, added: Vec<String>) {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).extend(added);
        self.soon.notify_one();
    }

    /// Looks at all conditions regularly, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
                () = self.soon.notified() => {}
            }
            let looked = self.blocking(|conditions| conditions.look());
            if let Some(Err(error)) = stop.run_until_cancelled(looked).await {
                tracing::error!(%error, "cannot look for changes of which webhooks get events");
            }
        }
    }

    fn look(&self) -> Result<(), Error> {
        if !self.notifications.is_used() {
            return Ok(());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { reported, unread, unavailable } = &mut *seen;
        if let (None, Ok(read)) = (&reported, self.store.events().conditions()) {
            *reported = Some(read);
        }
        let added = std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner));
        for known in reported.iter_mut().chain([&mut *unread]) {
            known.retain(|(webhook, _), _| self.notifications.has(webhook) && !added.contains(webhook));
        }
        // A damaged database is a condition too.
        let mut round = Round { notifications: &self.notifications, reported: reported.as_mut().unwrap_or(unread) };
        self.look_at_database(&mut round);
        for (known, mounted) in self.inventory.repositories().with_mounts() {
            self.look_at_repository(&mut round, unavailable, known, mounted);
        }
        self.look_at_certificates(&mut round);
        Ok(())
    }

    fn look_at_database(&self, round: &mut Round<'_>) {
        let rebuilding = self.store.rebuild().is_ok_and(|rebuild| rebuild.started.is_some());
        let is_damaged = self.database.is_damaged() || rebuilding;
        let data = api::DatabaseEvent { rebuilding };
        let kind = if is_damaged { EventKind::DatabaseDamaged } else { EventKind::DatabaseRecovered };
        round.report("database", is_damaged.then_some("damaged"), Some(Event::new(kind, &data)));
    }

    fn look_at_repository(
        &self,
        round: &mut Round<'_>,
        unavailable: &mut HashMap<String, u32>,
        known: &RepositoryState,
        mounted: Result<(&Repository, Mounted), String>,
    ) {
        let space = mounted.as_ref().ok().map(|(_, mounted)| mounted.space);
        let reason = match &mounted {
            Err(cause) => Some(cause.clone()),
            Ok((_, mounted)) => mounted.restriction(),
        };
        let rounds = unavailable.entry(known.name.clone()).or_default();
        *rounds = if mounted.is_ok() { 0 } else { rounds.saturating_add(1) };
        let limit = space.map(|space| self.notifications.low_space().of(space.total));
        let data = api::RepositoryEvent {
            id: known.name.clone(),
            alias: known.entry.as_ref().and_then(|entry| entry.alias.clone()),
            total_bytes: space.map(|space| space.total),
            free_bytes: space.map(|space| space.free),
            low_space_bytes: limit,
            min_free_bytes: space.map(|space| self.policy.get().min_free_space.of(space.total)),
            reason: reason.clone(),
        };
        if mounted.is_ok() || *rounds >= UNAVAILABLE_ROUNDS {
            let kind = if reason.is_some() { EventKind::RepositoryUnavailable } else { EventKind::RepositoryAvailable };
            let condition = format!("repository/{}", known.name);
            round.report(&condition, reason.map(|_| "unavailable"), Some(Event::new(kind, &data)));
        }
        // While it is unavailable, its space is unknown and stays as it was.
        let Some((space, limit)) = space.zip(limit) else { return };
        let condition = format!("space/{}", known.name);
        let is_low = is_low(space.free, (limit, space.total), round.is_reported(&condition));
        let kind = if is_low { EventKind::SpaceLow } else { EventKind::SpaceRecovered };
        round.report(&condition, is_low.then_some("low"), Some(Event::new(kind, &data)));
    }

    fn look_at_certificates(&self, round: &mut Round<'_>) {
        for (key, path, end) in self.warnings.certificates() {
            let days_left = remaining_days(end);
            let data = api::CertificateEvent {
                key: key.to_owned(),
                path: path.display().to_string(),
                expires_at: api::time(end),
                days_left: days_left.and_then(|days| u64::try_from(days).ok()).unwrap_or_default(),
            };
            let state = stage(days_left).map(|stage| format!("{end} {stage}"));
            // That it was renewed is no event.
            let event = state.is_some().then(|| Event::new(EventKind::CertificateExpiring, &data));
            round.report(&format!("certificate/{key}"), state.as_deref(), event);
        }
    }
}

/// One look at the conditions.
struct Round<'a> {
    notifications: &'a Notifications,
    reported: &'a mut ReportedConditions,
}

impl Round<'_> {
    fn report(&mut self, condition: &str, state: Option<&str>, event: Option<Event>) {
        self.notifications.report(self.reported, condition, state, event);
    }

    /// Whether a webhook knows that the condition is bad.
    fn is_reported(&self, condition: &str) -> bool {
        self.reported.keys().any(|(_, other)| other == condition)
    }
}

/// Whether the free space is low. After that it has to grow by a fifth of the limit before it is not, so that space
/// around the limit is reported once. With a limit near the size of the repository, half of the rest is enough.
fn is_low(free: u64, (limit, total): (u64, u64), was_low: bool) -> bool {
    let margin = (limit / 5).min(total.saturating_sub(limit) / 2);
    free < if was_low { limit.saturating_add(margin) } else { limit }
}

/// The lowest of [`STAGES`] that a certificate has reached.
fn stage(days_left: Option<i64>) -> Option<i64> {
    match days_left {
        None => Some(0),
        Some(days) => STAGES.into_iter().find(|stage| days < *stage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_around_the_limit_is_reported_once() {
        let mut was_low = false;
        let states = [110, 100, 99, 100, 119, 120, 119, 100, 99].map(|free| {
            was_low = is_low(free, (100, 1000), was_low);
            was_low
        });
        assert_eq!(states, [false, false, true, true, true, false, false, false, true]);
        assert!(!is_low(0, (0, 1000), false) && !is_low(u64::MAX, (u64::MAX, u64::MAX), true), "0 is never low");
        assert!(!is_low(98, (90, 100), true) && is_low(94, (90, 100), true), "an almost empty repository recovers");
    }

    #[test]
    fn certificates_are_reported_in_stages() {
        for (days, expected) in [
            (Some(31), None),
            (Some(30), None),
            (Some(29), Some(30)),
            (Some(7), Some(30)),
            (Some(6), Some(7)),
            (Some(1), Some(7)),
            (Some(0), Some(1)),
            (None, Some(0)),
        ] {
            assert_eq!(stage(days), expected, "{days:?}");
        }
    }
}
