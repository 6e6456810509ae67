//! The webhooks of the config, and the events for them.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::sender::{Sender, Shared};
use crate::api;
use crate::app::Error;
use crate::app::audit::Actor;
use crate::app::tasks::Tasks;
use crate::auth::Session;
use crate::config::{self, MinFreeSpace};
use crate::metrics::Metrics;
use crate::model::EventKind;
use crate::store::{NewEvent, Store};
use crate::sys::host;
use crate::webhooks::Client;

const NO_WEBHOOK: &str =
    "no webhook is configured; add a section [[notifications.webhooks]] to the config, and reload the service";
const NO_SUCH_WEBHOOK: &str = "no such webhook; the status lists them";

/// Tells webhooks what happened.
pub struct Notifications {
    shared: Arc<Shared>,
    host: String,
    current: RwLock<Arc<Current>>,
}

/// What the config says.
struct Current {
    config: config::Notifications,
    senders: Vec<Arc<Sender>>,
    /// Ends the senders.
    stop: CancellationToken,
}

impl Notifications {
    /// # Errors
    /// The certificate of a webhook cannot be used. The text names the webhook.
    pub(crate) fn new(
        config: &config::Notifications,
        store: Store,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { store, metrics, tasks, unwritten: Default::default() });
        let current = RwLock::new(Arc::new(Current::new(config, &shared, CancellationToken::new())?));
        Ok(Self { shared, host: host::name(), current })
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to deliver events, until `stop`.
    pub(crate) fn start(&self, stop: &CancellationToken) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let Current { config, senders, .. } = &**current;
        let started = Current { config: config.clone(), senders: senders.clone(), stop: stop.child_token() };
        *current = Arc::new(started);
        self.run(&current);
    }

    fn run(&self, current: &Current) {
        for sender in &current.senders {
            drop(self.shared.tasks.spawn(Arc::clone(sender).run(current.stop.clone())));
        }
        let (store, names) = (self.shared.store.clone(), current.senders.iter().map(|sender| sender.name().to_owned()));
        let names: Vec<String> = names.collect();
        let tasks = self.shared.tasks.clone();
        drop(self.shared.tasks.spawn(async move {
            let names = move || store.events().keep_only(&names.iter().map(String::as_str).collect::<Vec<_>>());
            match tasks.blocking(move || Ok(names()?)).await {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => tracing::warn!(webhooks = ?removed, "dropped the events of webhooks that were removed"),
                Err(error) => tracing::error!(%error, "cannot drop the events of removed webhooks"),
            }
        }));
    }

    /// Uses another config from now on. Events that wait for a webhook go to the one of the same name.
    ///
    /// # Errors
    /// As [`Self::new`]. The current config stays in use.
    pub(crate) fn set(&self, config: &config::Notifications, stop: &CancellationToken) -> io::Result<()> {
        let new = Arc::new(Current::new(config, &self.shared, stop.child_token())?);
        let old =
            std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), Arc::clone(&new));
        old.stop.cancel();
        let is_removed = |name: &str| new.senders.iter().all(|sender| sender.name() != name);
        let removed = old.senders.iter().map(|sender| sender.name()).filter(|name| is_removed(name));
        removed.for_each(|name| self.shared.metrics.webhooks.remove(name));
        self.run(&new);
        Ok(())
    }

    /// Whether there are webhooks.
    pub(crate) fn is_used(&self) -> bool {
        !self.current().senders.is_empty()
    }

    /// With less free space, a repository is reported.
    pub(crate) fn low_space(&self) -> MinFreeSpace {
        self.current().config.low_space
    }

    /// The event as the database takes it, together with the change that it is about. Nothing if no webhook wants it.
    /// After that, call [`Self::wake`].
    pub(crate) fn prepare(&self, event: &Event) -> Option<NewEvent> {
        let current = self.current();
        let wanting = current.senders.iter().filter(|sender| sender.client.webhook().wants(event.kind));
        let webhooks: Vec<_> = wanting.map(|sender| sender.name().to_owned()).collect();
        let max_queued = current.config.max_queued;
        (!webhooks.is_empty()).then(|| NewEvent { webhooks, body: event.body(&self.host), max_queued })
    }

    /// There may be new events in the database.
    pub(crate) fn wake(&self) {
        self.current().senders.iter().for_each(|sender| sender.wake());
    }

    /// Queues an event about something that is not in the database. This blocks. If the database cannot be written, the
    /// event is kept in memory.
    pub(crate) fn announce(&self, event: &Event) {
        let Some(new) = self.prepare(event) else { return };
        if let Err(error) = self.shared.store.events().add(&new) {
            self.keep_in_memory(event, &new, &error.to_string());
        }
        self.wake();
    }

    /// Records the state of a condition, `None` if it is as it should be, with the event that reports it. Returns whether
    /// it is recorded. If not, the event is kept in memory.
    pub(crate) fn set_condition(&self, condition: &str, state: Option<&str>, event: Option<&Event>) -> bool {
        let new = event.and_then(|event| self.prepare(event));
        let written = self.shared.store.events().set_condition(condition, state, new.as_ref());
        if let (Err(error), Some((event, new))) = (&written, event.zip(new.as_ref())) {
            self.keep_in_memory(event, new, &error.to_string());
        }
        self.wake();
        written.is_ok()
    }

    fn keep_in_memory(&self, event: &Event, new: &NewEvent, error: &str) {
        let (kind, id) = (event.kind.as_str(), &event.id);
        tracing::error!(event = kind, id, error, "cannot write an event into the database; keeping it in memory");
        for webhook in &new.webhooks {
            if !self.shared.keep_in_memory(webhook, &new.body) {
                tracing::error!(webhook, event = kind, id, "dropped an event: too many are in memory");
                self.shared.metrics.webhooks.dropped(webhook, 1);
            }
        }
    }

    /// Sends a test event to the webhook of this name, or to all, and waits for the answers.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such webhook.
    pub async fn test(&self, session: &Session, name: Option<&str>) -> Result<Vec<api::TestedWebhook>, Error> {
        let current = self.current();
        let is_named = |sender: &&Arc<Sender>| name.is_none_or(|name| name == sender.name());
        let senders: Vec<_> = current.senders.iter().filter(is_named).cloned().collect();
        let outcome = match (current.senders.is_empty(), senders.is_empty()) {
            (true, _) => Err(Error::NotFound(NO_WEBHOOK)),
            (_, true) => Err(Error::NotFound(NO_SUCH_WEBHOOK)),
            (false, false) => Ok(()),
        };
        Actor::from(session).did("notifications-test", name.unwrap_or("all webhooks"), &outcome);
        outcome?;
        let event = Event::new(EventKind::Test, &api::TestEvent { user: session.subject().to_owned() });
        let mut attempts = JoinSet::new();
        for (index, sender) in senders.into_iter().enumerate() {
            let (id, body) = (event.id.clone(), event.body(&self.host));
            attempts.spawn(async move {
                let (delivered, result) = sender.send_now(&id, body).await;
                (index, api::TestedWebhook { name: sender.name().to_owned(), delivered, result })
            });
        }
        let mut results = attempts.join_all().await;
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// The state of each webhook.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn status(&self) -> Result<Vec<api::WebhookStatus>, Error> {
        let describe = |sender: &Arc<Sender>| {
            let waiting = self.shared.store.events().waiting(sender.name())?;
            let state = sender.state();
            Ok(api::WebhookStatus {
                name: sender.name().to_owned(),
                origin: sender.client.webhook().origin.clone(),
                queued: waiting.queued,
                dropped: waiting.dropped,
                last_success: state.last_success.map(api::time),
                last_error: state.last_error.as_ref().map(|(at, reason)| api::WebhookError {
                    at: api::time(*at),
                    reason: reason.clone(),
                    next_attempt: state.next_attempt().map(api::time),
                }),
                disabled: state.is_disabled,
            })
        };
        self.current().senders.iter().map(describe).collect()
    }
}

impl Current {
    fn new(config: &config::Notifications, shared: &Arc<Shared>, stop: CancellationToken) -> io::Result<Self> {
        let sender = |webhook: &config::Webhook| {
            let client = Client::new(webhook.clone())
                .map_err(|error| io::Error::other(format!("the webhook {}: {error}", webhook.name)))?;
            Ok(Arc::new(Sender::new(client, Arc::clone(shared), config.retry_for)))
        };
        let senders = config.webhooks.iter().map(sender).collect::<io::Result<_>>()?;
        Ok(Self { config: config.clone(), senders, stop })
    }
}
