//! Metrics of webhooks. Their label is the name in the config.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::register::{Counters, Gauges, add};

pub struct WebhookMetrics {
    deliveries: Counters<2>,
    dropped: Counters<1>,
    queued: Gauges<1>,
}

impl WebhookMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let r = registry;
        Self {
            deliveries: add(r, "webhook_deliveries", "Attempts to deliver an event to a webhook, by outcome"),
            dropped: add(r, "webhook_events_dropped", "Events that were dropped because a webhook did not accept them"),
            queued: add(r, "webhook_events_queued", "Events that wait for a webhook"),
        }
    }

    fn delivery(&self, webhook: &str, outcome: &str) -> Counter {
        let labels = [("webhook", webhook.to_owned()), ("outcome", outcome.to_owned())];
        self.deliveries.get_or_create(&labels).clone()
    }

    pub fn sent(&self, webhook: &str) {
        self.delivery(webhook, "sent").inc();
    }

    pub fn failed(&self, webhook: &str) {
        self.delivery(webhook, "failed").inc();
    }

    pub fn dropped(&self, webhook: &str, count: u64) {
        self.dropped.get_or_create(&[("webhook", webhook.to_owned())]).inc_by(count);
    }

    /// The webhook is no longer in the config.
    pub fn remove(&self, webhook: &str) {
        let name = || ("webhook", webhook.to_owned());
        for outcome in ["sent", "failed"] {
            self.deliveries.remove(&[name(), ("outcome", outcome.to_owned())]);
        }
        self.dropped.remove(&[name()]);
        self.queued.remove(&[name()]);
    }

    /// Records how many events wait. All values of the webhook exist from then on, because a rate needs a first value.
    pub fn queued(&self, webhook: &str, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.queued.get_or_create(&[("webhook", webhook.to_owned())]).set(count);
        self.delivery(webhook, "sent").inc_by(0);
        self.delivery(webhook, "failed").inc_by(0);
        self.dropped(webhook, 0);
    }
}
