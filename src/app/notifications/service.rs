//! The webhooks of the config, and the events for them.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::sender::{Sender, Shared, Target};
use crate::api;
use crate::app::Error;
use crate::app::audit::Actor;
use crate::app::tasks::Tasks;
use crate::auth::Session;
use crate::config::{self, MinFreeSpace};
use crate::metrics::Metrics;
use crate::model::EventKind;
use crate::store::{NewEvent, ReportedConditions, Store, StoreError};
use crate::sys::host;
use crate::webhooks::Client;

const NO_WEBHOOK: &str =
    "no webhook is configured; add a section [[notifications.webhooks]] to the config, and reload the service";
const NO_SUCH_WEBHOOK: &str = "no such webhook; the status lists them";

/// Tells webhooks what happened.
pub struct Notifications {
    shared: Arc<Shared>,
    host: String,
    /// The id of the service.
    exporter: String,
    current: Arc<RwLock<Arc<Current>>>,
}

/// What the config says.
struct Current {
    config: config::Notifications,
    senders: Vec<Arc<Sender>>,
}

impl Notifications {
    /// # Errors
    /// The certificate of a webhook cannot be used. The text names the webhook.
    pub(crate) fn new(
        config: &config::Notifications,
        exporter: String,
        store: Store,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { store, metrics, tasks });
        let senders = targets(config)?.into_iter().map(|target| Sender::new(Arc::new(target), Arc::clone(&shared)));
        let current = Current { config: config.clone(), senders: senders.map(Arc::new).collect() };
        Ok(Self { shared, host: host::name(), exporter, current: Arc::new(RwLock::new(Arc::new(current))) })
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to deliver events, until `stop`.
    pub(crate) fn start(&self, stop: &CancellationToken) {
        for sender in &self.current().senders {
            drop(self.shared.tasks.spawn(Arc::clone(sender).run(stop.clone())));
        }
        self.tidy();
    }

    /// Removes the events of webhooks that are not in the config any more.
    fn tidy(&self) {
        let (current, store, tasks) = (Arc::clone(&self.current), self.shared.store.clone(), self.shared.tasks.clone());
        drop(self.shared.tasks.spawn(async move {
            let tidied = tasks.blocking(move || {
                let is_kept = |name: &str| current.read().unwrap_or_else(PoisonError::into_inner).has(name);
                Ok(store.events().keep_only(is_kept)?)
            });
            match tidied.await {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => tracing::warn!(webhooks = ?removed, "dropped the events of webhooks that were removed"),
                Err(error) => tracing::error!(%error, "cannot drop the events of removed webhooks"),
            }
        }));
    }

    /// Uses another config from now on. A webhook whose name stays keeps its events. Returns the names of the new ones.
    ///
    /// # Errors
    /// As [`Self::new`]. The current config stays in use.
    pub(crate) fn set(&self, config: &config::Notifications, stop: &CancellationToken) -> io::Result<Vec<String>> {
        let targets = targets(config)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = current.senders.clone();
        let (mut senders, mut added) = (Vec::new(), Vec::new());
        for target in targets.into_iter().map(Arc::new) {
            let name = &target.client.webhook().name;
            let sender = if let Some(index) = old.iter().position(|sender| sender.name() == name) {
                let sender = old.swap_remove(index);
                sender.set_target(target);
                sender
            } else {
                added.push(name.clone());
                let sender = Arc::new(Sender::new(target, Arc::clone(&self.shared)));
                drop(self.shared.tasks.spawn(Arc::clone(&sender).run(stop.clone())));
                sender
            };
            senders.push(sender);
        }
        old.iter().for_each(|sender| sender.removed.cancel());
        *current = Arc::new(Current { config: config.clone(), senders });
        drop(current);
        self.tidy();
        Ok(added)
    }

    /// Whether there is a webhook of this name.
    pub(crate) fn has(&self, webhook: &str) -> bool {
        self.current().has(webhook)
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
        let wanting = current.senders.iter().filter(|sender| sender.wants(event.kind));
        self.prepare_for(wanting.map(|sender| sender.name().to_owned()).collect(), event)
    }

    fn prepare_for(&self, webhooks: Vec<String>, event: &Event) -> Option<NewEvent> {
        let current = self.current();
        let max_queued = current.config.max_queued;
        // An older event must not come after this one.
        current.named(&webhooks).for_each(|sender| sender.write_older());
        let body = || event.body(&self.host, &self.exporter);
        (!webhooks.is_empty()).then(|| NewEvent { webhooks, body: body(), max_queued })
    }

    /// There may be new events in the database.
    pub(crate) fn wake(&self) {
        self.current().senders.iter().for_each(|sender| sender.wake());
    }

    /// Lets `write` write the events in the transaction of what they are about. It gets one for each of them, or nothing
    /// in the place of one that no webhook wants. This blocks. If it fails, the events are kept in memory.
    ///
    /// # Errors
    /// Those of `write`.
    pub(crate) fn announce_with<T>(
        &self,
        events: &[Event],
        write: impl FnOnce(&[Option<NewEvent>]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let new: Vec<_> = events.iter().map(|event| self.prepare(event)).collect();
        let written = write(&new);
        if let Err(error) = &written {
            for (event, new) in events.iter().zip(&new).filter_map(|(event, new)| Some((event, new.as_ref()?))) {
                self.keep_in_memory(event, new, &error.to_string());
            }
        }
        if new.iter().any(Option::is_some) {
            self.wake();
        }
        written
    }

    /// Reports the state of a condition, `None` if it is as it should be, to each webhook of which `reported` says
    /// something else. A webhook that does not want `event` hears nothing; that the condition is bad is not recorded for
    /// it, so that it hears of it once it wants to. This blocks.
    pub(crate) fn report(
        &self,
        reported: &mut ReportedConditions,
        condition: &str,
        state: Option<&str>,
        event: Option<Event>,
    ) {
        let (mut changed, mut told) = (Vec::new(), Vec::new());
        for sender in &self.current().senders {
            let key = (sender.name().to_owned(), condition.to_owned());
            let wants = event.as_ref().is_some_and(|event| sender.wants(event.kind));
            if reported.get(&key).map(String::as_str) == state || (state.is_some() && !wants) {
                continue;
            }
            told.extend(wants.then(|| sender.name().to_owned()));
            changed.push(sender.name().to_owned());
            match state {
                Some(state) => drop(reported.insert(key, state.to_owned())),
                None => drop(reported.remove(&key)),
            }
        }
        if changed.is_empty() {
            return;
        }
        let new = event.as_ref().and_then(|event| self.prepare_for(told, event));
        let written = self.shared.store.events().set_condition(&changed, condition, state, new.as_ref());
        match (written, event.zip(new)) {
            (Ok(()), _) => {}
            // The next start reports the condition again.
            (Err(error), Some((event, new))) => self.keep_in_memory(&event, &new, &error.to_string()),
            (Err(error), None) => tracing::error!(condition, %error, "cannot record the state of a condition"),
        }
        self.wake();
    }

    fn keep_in_memory(&self, event: &Event, new: &NewEvent, error: &str) {
        let (kind, id) = (event.kind.as_str(), &event.id);
        tracing::error!(event = kind, id, error, "cannot write an event into the database; keeping it in memory");
        self.current().named(&new.webhooks).for_each(|sender| sender.keep_in_memory(id, &new.body));
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
            let (id, body) = (event.id.clone(), event.body(&self.host, &self.exporter));
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
            let waiting = sender.waiting()?;
            let (target, state) = (sender.target(), sender.state());
            Ok(api::WebhookStatus {
                name: sender.name().to_owned(),
                origin: target.client.webhook().origin.clone(),
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
    fn has(&self, webhook: &str) -> bool {
        self.senders.iter().any(|sender| sender.name() == webhook)
    }

    fn named<'a>(&'a self, webhooks: &'a [String]) -> impl Iterator<Item = &'a Arc<Sender>> {
        self.senders.iter().filter(|sender| webhooks.iter().any(|name| name == sender.name()))
    }
}

fn targets(config: &config::Notifications) -> io::Result<Vec<Target>> {
    let target = |webhook: &config::Webhook| {
        let client = Client::new(webhook.clone())
            .map_err(|error| io::Error::other(format!("the webhook {}: {error}", webhook.name)))?;
        Ok(Target { client, retry_for: config.retry_for, max_queued: config.max_queued })
    };
    config.webhooks.iter().map(target).collect()
}
