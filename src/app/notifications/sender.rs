//! Delivers the events of one webhook, one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::delay;
use crate::api;
use crate::app::Error;
use crate::app::tasks::Tasks;
use crate::metrics::Metrics;
use crate::store::{Store, Waiting};
use crate::webhooks::{Client, Delivery};

/// After so many refusals in a row, an event goes behind the others: the receiver may accept those.
const MAX_REFUSALS: u32 = 3;

/// The pause after the database could not be read.
const DATABASE_PAUSE: Duration = Duration::from_secs(10);

/// Until a new event wakes the sender.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// The most events of one webhook in memory.
const MAX_IN_MEMORY: usize = 100;

/// What the senders share.
pub(super) struct Shared {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    /// Events by webhook that could not be written into the database. That it is damaged is worth an event too.
    pub unwritten: Mutex<HashMap<String, VecDeque<Vec<u8>>>>,
}

impl Shared {
    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Vec<u8>>>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event in memory. Returns whether there was room.
    pub(super) fn keep_in_memory(&self, webhook: &str, body: &[u8]) -> bool {
        let mut all = self.unwritten();
        let queue = all.entry(webhook.to_owned()).or_default();
        let has_room = queue.len() < MAX_IN_MEMORY;
        if has_room {
            queue.push_back(body.to_vec());
        }
        has_room
    }
}

/// How a webhook fares.
#[derive(Default)]
pub(super) struct State {
    pub last_success: Option<Timestamp>,
    pub last_error: Option<(Timestamp, String)>,
    /// In a row.
    failures: u32,
    /// No attempt before then.
    next_attempt: Option<Instant>,
    /// The receiver answered 410.
    pub is_disabled: bool,
}

impl State {
    /// When the next attempt is due, if one is to come after a failure.
    pub(super) fn next_attempt(&self) -> Option<Timestamp> {
        let left = self.next_attempt?.saturating_duration_since(Instant::now());
        (!self.is_disabled).then(|| Timestamp::now() + left)
    }

    fn succeeded(&mut self) {
        *self = Self { last_success: Some(Timestamp::now()), ..Self::default() };
    }

    fn failed(&mut self, reason: &str, retry_after: Option<Duration>) {
        self.failures += 1;
        self.last_error = Some((Timestamp::now(), reason.to_owned()));
        self.next_attempt = Some(Instant::now() + delay(self.failures, retry_after));
    }
}

/// A webhook of the current config.
pub(super) struct Sender {
    pub client: Client,
    shared: Arc<Shared>,
    /// An event that could not be delivered for this time is dropped.
    retry_for: Duration,
    wake: Notify,
    state: Mutex<State>,
}

/// An event to deliver.
struct Next {
    /// In the database. `None`: in memory.
    number: Option<u64>,
    body: Vec<u8>,
    dropped: u64,
    /// Whether others wait behind it.
    has_followers: bool,
}

impl Sender {
    pub(super) fn new(client: Client, shared: Arc<Shared>, retry_for: Duration) -> Self {
        Self { client, shared, retry_for, wake: Notify::new(), state: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.client.webhook().name
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There may be a new event.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Sends an event at once, outside the queue. If it arrives, waiting ones follow.
    pub(super) async fn send_now(&self, id: &str, body: Vec<u8>) -> (bool, String) {
        match self.client.send(id, body).await {
            Delivery::Delivered(text) => {
                self.state().succeeded();
                self.wake();
                (true, text)
            }
            Delivery::Unreachable { reason, .. } | Delivery::Refused(reason) | Delivery::Gone(reason) => {
                (false, reason)
            }
        }
    }

    /// Delivers events until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        // Those that were dropped earlier are in the log already.
        let (mut known_dropped, mut refusals) = (None, 0);
        while !stop.is_cancelled() {
            let next = match self.next(&mut known_dropped).await {
                Ok(next) => next.zip(self.due()).ok_or(FOREVER),
                Err(error) => {
                    tracing::error!(webhook = self.name(), %error, "cannot read the events that wait");
                    Err(DATABASE_PAUSE)
                }
            };
            let (next, pause) = match next {
                Ok((next, due)) => (Some(next), due.saturating_duration_since(Instant::now())),
                Err(pause) => (None, pause),
            };
            let Some(next) = next.filter(|_| pause.is_zero()) else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                continue;
            };
            // An attempt that is cut off is repeated after the next start, with the same id.
            if stop.run_until_cancelled(self.attempt(next, &mut known_dropped, &mut refusals)).await.is_none() {
                return;
            }
        }
    }

    /// When an attempt may be made. `None`: not before a reload.
    fn due(&self) -> Option<Instant> {
        let state = self.state();
        if state.is_disabled { None } else { Some(state.next_attempt.unwrap_or_else(Instant::now)) }
    }

    /// The next event, if there is one. Also reports how many wait, and how many were dropped since the last call.
    async fn next(&self, known_dropped: &mut Option<u64>) -> Result<Option<Next>, Error> {
        let name = self.name().to_owned();
        let (first, in_memory) =
            self.shared.unwritten().get(&name).map_or((None, 0), |queue| (queue.front().cloned(), queue.len()));
        // It does not report what was dropped: that would have to be recorded in the database.
        let first = first.map(|body| Next { number: None, body, dropped: 0, has_followers: false });
        let waiting = self.in_database(move |store| store.events().waiting(&name)).await;
        let Waiting { next, queued, dropped } = match (waiting, first.is_some()) {
            (Ok(waiting), _) => waiting,
            // What is in memory can be delivered without the database.
            (Err(_), true) => return Ok(first),
            (Err(error), false) => return Err(error),
        };
        let before = known_dropped.replace(dropped).unwrap_or(dropped);
        if dropped > before {
            let count = dropped - before;
            tracing::warn!(webhook = self.name(), count, queued, "dropped events that could not be delivered");
            self.shared.metrics.webhooks.dropped(self.name(), count);
        }
        self.shared.metrics.webhooks.queued(self.name(), queued + in_memory as u64);
        let has_followers = queued > 1;
        Ok(next.map(|(number, body)| Next { number: Some(number), body, dropped, has_followers }).or(first))
    }

    async fn in_database<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, crate::store::StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.shared.store.clone();
        self.shared.tasks.blocking(move || Ok(work(&store)?)).await
    }

    async fn attempt(&self, next: Next, known_dropped: &mut Option<u64>, refusals: &mut u32) {
        let parsed = serde_json::from_slice::<api::Notification<Box<RawValue>>>(&next.body);
        let mut notification = match parsed {
            Ok(notification) => notification,
            Err(error) => {
                tracing::error!(webhook = self.name(), %error, "dropping an event that cannot be read");
                return self.finish(&next, |store, name, number| store.events().give_up(name, number)).await;
            }
        };
        notification.dropped = Some(next.dropped).filter(|count| *count > 0);
        let body = serde_json::to_vec(&notification).unwrap_or_default();
        let (event, id) = (&notification.event, &notification.id);
        let (reason, retry_after, was_refused) = match self.client.send(id, body).await {
            Delivery::Delivered(_) => {
                tracing::debug!(webhook = self.name(), event, id, "event delivered");
                self.shared.metrics.webhooks.sent(self.name());
                self.state().succeeded();
                *refusals = 0;
                let dropped = next.dropped;
                *known_dropped = known_dropped.map(|known| known.saturating_sub(dropped));
                let done = move |store: &Store, name: &str, number| store.events().delivered(name, number, dropped);
                return self.finish(&next, done).await;
            }
            Delivery::Gone(reason) => {
                tracing::error!(
                    webhook = self.name(),
                    "the receiver answers 410 Gone and gets no events until the service is reloaded or restarted; \
                     remove the webhook from the config"
                );
                self.state().is_disabled = true;
                (reason, None, true)
            }
            Delivery::Refused(reason) => (reason, None, true),
            Delivery::Unreachable { reason, retry_after } => (reason, retry_after, false),
        };
        self.shared.metrics.webhooks.failed(self.name());
        let is_new = self.state().last_error.as_ref().is_none_or(|(_, last)| *last != reason);
        if is_new {
            tracing::warn!(webhook = self.name(), event, id, reason, "cannot deliver an event; trying again later");
        } else {
            tracing::debug!(webhook = self.name(), event, id, reason, "cannot deliver an event; trying again later");
        }
        self.state().failed(&reason, retry_after);
        *refusals = if was_refused { *refusals + 1 } else { 0 };
        // A clock that was set forward costs no event its first attempt.
        let age = notification.time.parse::<Timestamp>().map(|time| Timestamp::now().duration_since(time));
        if age.is_ok_and(|age| age > self.retry_for.try_into().unwrap_or(jiff::SignedDuration::MAX)) {
            tracing::error!(webhook = self.name(), event, id, reason, "giving up an event");
            *refusals = 0;
            self.finish(&next, |store, name, number| store.events().give_up(name, number)).await;
        } else if *refusals >= MAX_REFUSALS && next.has_followers {
            *refusals = 0;
            self.finish(&next, |store, name, number| store.events().postpone(name, number)).await;
        }
    }

    /// Takes the event from its place in the queue.
    async fn finish(
        &self,
        next: &Next,
        work: impl FnOnce(&Store, &str, u64) -> Result<(), crate::store::StoreError> + Send + 'static,
    ) {
        let name = self.name().to_owned();
        let Some(number) = next.number else {
            self.shared.unwritten().get_mut(&name).map(VecDeque::pop_front);
            return;
        };
        if let Err(error) = self.in_database(move |store| work(store, &name, number)).await {
            // It comes again, with the same id.
            tracing::error!(webhook = self.name(), %error, "cannot record what became of an event");
            self.state().failed(&error.to_string(), Some(DATABASE_PAUSE));
        }
    }
}
