//! Delivers the events of one webhook, one after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::delay;
use super::queue::{DATABASE_PAUSE, Place, Queue, Waiting};
use crate::api;
use crate::app::Error;
use crate::app::tasks::{Service, Tasks};
use crate::metrics::Metrics;
use crate::model::EventKind;
use crate::store::{Events, Outcome, Store};
use crate::webhooks::{Client, Delivery};

/// After so many refusals in a row, an event goes behind the others: the receiver may accept those.
const MAX_REFUSALS: u32 = 3;

/// No event is given up before the sender has run for this time, or for `retry_for` if that is shorter: a clock that is
/// set after the host has booted makes events old.
const MIN_RETRY_TIME: Duration = Duration::from_secs(3600);

/// Until a new event wakes the sender.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// What the senders share.
pub(super) struct Shared {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
}

/// What the config says about a webhook.
pub(super) struct Target {
    pub client: Client,
    /// An event that could not be delivered for this time is dropped.
    pub retry_for: Duration,
    pub max_queued: u64,
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

    /// The pause before the next attempt.
    fn pause(&self) -> Duration {
        let left = self.next_attempt.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        if self.is_disabled { FOREVER } else { left }
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

/// What the sender remembers from one attempt to the next.
#[derive(Default)]
struct Progress {
    /// The events that were dropped and not reported yet, as far as they are in the log. `None`: all of them.
    dropped: Option<u64>,
    /// The last event that was refused, and how often in a row.
    refused: (String, u32),
}

/// A webhook of the current config. It stays the same when the config is loaded again.
pub(super) struct Sender {
    name: String,
    target: RwLock<Arc<Target>>,
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    wake: Notify,
    state: Mutex<State>,
    started: Instant,
    /// Cancelled when the webhook is removed from the config.
    pub removed: CancellationToken,
}

impl Service for Sender {
    fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }
}

impl Sender {
    pub(super) fn new(target: Arc<Target>, shared: Arc<Shared>) -> Self {
        let name = target.client.webhook().name.clone();
        let (queue, wake, state) = (Mutex::default(), Notify::new(), Mutex::default());
        let (started, removed) = (Instant::now(), CancellationToken::new());
        Self { name, target: RwLock::new(target), shared, queue, wake, state, started, removed }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn wants(&self, kind: EventKind) -> bool {
        self.target().client.webhook().wants(kind)
    }

    /// Uses what a reloaded config says. If that is another server, or the receiver answered 410, it is tried at once.
    pub(super) fn set_target(&self, target: Arc<Target>) {
        let is_same = self.target().client.webhook() == target.client.webhook();
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = target;
        let mut state = self.state();
        if !is_same || state.is_disabled {
            *state = State::default();
        }
        drop(state);
        self.wake();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> Events<'_> {
        self.shared.store.events()
    }

    /// There may be a new event.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Keeps an event in memory that could not be written.
    pub(super) fn keep_in_memory(&self, id: &str, body: &[u8]) {
        if self.queue().keep(id, body) {
            tracing::error!(webhook = self.name(), "dropped an event: too many are in memory");
        }
    }

    /// What waits. This blocks.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn waiting(&self) -> Result<Waiting, Error> {
        Ok(self.queue().waiting(&self.events(), &self.name)?)
    }

    /// Sends an event at once, outside the queue. If it arrives, waiting ones follow.
    pub(super) async fn send_now(&self, id: &str, body: Vec<u8>) -> (bool, String) {
        match self.target().client.send(id, body).await {
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

    /// Delivers events until `stop`, or until the webhook is removed.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut progress = Progress::default();
        let ended = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.removed.cancelled() => {}
            }
        };
        tokio::pin!(ended);
        loop {
            let pause = tokio::select! {
                biased;
                () = &mut ended => break,
                pause = self.step(&mut progress) => pause,
            };
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = &mut ended => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if self.removed.is_cancelled() {
            self.shared.metrics.webhooks.remove(&self.name);
        } else {
            // The service waits for this before it exits.
            let written = self.detached(|sender| async move {
                let write = |sender: &Self| {
                    sender.write_if(|queue| queue.next_write().is_some());
                    Ok(())
                };
                sender.blocking(write).await
            });
            self.log_unwritten(written.await);
        }
    }

    /// Delivers the next event, if it is due. Returns the pause after that.
    async fn step(self: &Arc<Self>, progress: &mut Progress) -> Duration {
        let looked = self.blocking(|sender| {
            sender.write_if(|queue| queue.next_write().is_some_and(|next| next <= Instant::now()));
            Ok((sender.waiting()?, sender.queue().next_write()))
        });
        let (waiting, next_write) = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(webhook = self.name(), %error, "cannot read the events that wait");
                return DATABASE_PAUSE;
            }
        };
        self.report(&waiting, progress);
        let pause = self.state().pause();
        if let Some((place, body)) = waiting.next.filter(|_| pause.is_zero()) {
            self.attempt(place, body, (waiting.queued, waiting.dropped), progress).await;
            return Duration::ZERO;
        }
        let pause = if pause.is_zero() { FOREVER } else { pause };
        next_write.map_or(FOREVER, |next| next.saturating_duration_since(Instant::now())).min(pause)
    }

    /// Writes what is in memory into the database.
    fn write_if(&self, is_due: impl FnOnce(&Queue) -> bool) {
        let mut queue = self.queue();
        if is_due(&queue) {
            let written = queue.write(&self.events(), &self.name, self.target().max_queued);
            self.log_unwritten(written.map_err(Error::from));
        }
    }

    /// Writes the events in memory, so that a newer one does not come before them. It joins them if that fails.
    pub(super) fn write_older(&self) {
        self.write_if(Queue::may_be_overtaken);
    }

    fn log_unwritten(&self, written: Result<(), Error>) {
        if let Err(error) = written {
            tracing::error!(webhook = self.name(), %error, "cannot record what became of events");
        }
    }

    /// Reports how many events wait, and how many were dropped since the last call.
    fn report(&self, waiting: &Waiting, progress: &mut Progress) {
        let &Waiting { queued, dropped, .. } = waiting;
        let count = dropped.saturating_sub(progress.dropped.replace(dropped).unwrap_or(dropped));
        if count > 0 {
            tracing::warn!(webhook = self.name(), count, queued, "dropped events that could not be delivered");
            self.shared.metrics.webhooks.dropped(self.name(), count);
        }
        self.shared.metrics.webhooks.queued(self.name(), queued);
    }

    async fn attempt(
        self: &Arc<Self>,
        place: Place,
        body: Vec<u8>,
        (queued, dropped): (u64, u64),
        progress: &mut Progress,
    ) {
        let mut notification = match serde_json::from_slice::<api::Notification<Box<RawValue>>>(&body) {
            Ok(notification) => notification,
            Err(error) => {
                tracing::error!(webhook = self.name(), %error, "dropping an event that cannot be read");
                return self.finish(place, Outcome::GivenUp, 0).await;
            }
        };
        notification.dropped = Some(dropped).filter(|count| *count > 0);
        let body = serde_json::to_vec(&notification).unwrap_or_default();
        let (event, id, target) = (&notification.event, &notification.id, self.target());
        let (reason, retry_after, was_refused) = match target.client.send(id, body).await {
            Delivery::Delivered(_) => {
                tracing::debug!(webhook = self.name(), event, id, "event delivered");
                self.shared.metrics.webhooks.sent(self.name());
                self.state().succeeded();
                progress.dropped = progress.dropped.map(|known| known.saturating_sub(dropped));
                return self.finish(place, Outcome::Delivered, dropped).await;
            }
            Delivery::Gone(reason) => {
                tracing::error!(
                    webhook = self.name(),
                    "the receiver answers 410 Gone and gets no events until the service is reloaded or restarted, or \
                     a test succeeds; remove the webhook from the config"
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
        let before = if progress.refused.0 == *id { progress.refused.1 } else { 0 };
        let refusals = if was_refused { before + 1 } else { 0 };
        progress.refused = (id.clone(), refusals);
        let retry_for = target.retry_for;
        if self.started.elapsed() >= MIN_RETRY_TIME.min(retry_for) && is_older(&notification.time, retry_for) {
            tracing::error!(webhook = self.name(), event, id, reason, "giving up events that are too old");
            let given_up = self.blocking(move |sender| {
                let is_old = |body: &[u8]| {
                    let parsed = serde_json::from_slice::<api::Notification<IgnoredAny>>(body);
                    parsed.is_ok_and(|notification| is_older(&notification.time, retry_for))
                };
                Ok(sender.queue().give_up_old((&sender.events(), &sender.name), is_old)?)
            });
            self.log_unwritten(given_up.await);
        } else if refusals >= MAX_REFUSALS && queued > 1 {
            progress.refused.1 = 0;
            self.finish(place, Outcome::Postponed, 0).await;
        }
    }

    /// Notes what became of an event. Others may hold the queue while they wait for the database.
    async fn finish(self: &Arc<Self>, place: Place, outcome: Outcome, reported: u64) {
        let finished = self.blocking(move |sender| {
            sender.queue().finish(place, outcome, reported);
            Ok(())
        });
        self.log_unwritten(finished.await);
    }
}

/// Whether `time` is longer ago than that.
fn is_older(time: &str, than: Duration) -> bool {
    let age = time.parse::<Timestamp>().map(|time| Timestamp::now().duration_since(time));
    age.is_ok_and(|age| age > than.try_into().unwrap_or(SignedDuration::MAX))
}
