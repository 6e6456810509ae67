//! The client of one webhook.

use std::io;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use jiff::Timestamp;
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use secrecy::ExposeSecret;

use super::signature::signatures;
use crate::config::Webhook;
use crate::dns::HostNames;
use crate::tls;

/// For the connection. A host that is off does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Of the answer's body, so many bytes are read, so that the connection can end well. Nothing in it counts.
const MAX_ANSWER: usize = 64 << 10;

/// The longest pause that a receiver can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The result of an attempt. The texts are for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Delivered(String),
    /// The receiver was not reached, or does not work: it may accept the event later.
    Unreachable {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// The receiver answered that it does not accept this event.
    Refused(String),
    /// The receiver wants no more events.
    Gone(String),
}

/// Sends events to a webhook.
pub struct Client {
    webhook: Webhook,
    tls: ClientConfig,
    names: HostNames,
}

impl Client {
    /// # Errors
    /// The named certificate cannot be used.
    pub fn new(webhook: Webhook) -> io::Result<Self> {
        let client = Self { tls: tls::client_config(&webhook.trust)?, webhook, names: HostNames::read() };
        client.http().map_err(|error| io::Error::other(tls::with_causes(&error)))?;
        Ok(client)
    }

    pub fn webhook(&self) -> &Webhook {
        &self.webhook
    }

    /// A client for one attempt, so that each one looks up the name and connects again.
    fn http(&self) -> reqwest::Result<reqwest::Client> {
        let timeout = self.webhook.timeout;
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(self.names.clone())
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .timeout(timeout)
            // A redirection could lead the events to a server that the config does not name.
            .redirect(Policy::none())
            .no_proxy()
            .build()
    }

    /// Sends the event `id` once.
    pub async fn send(&self, id: &str, body: Vec<u8>) -> Delivery {
        self.try_send(id, body)
            .await
            .unwrap_or_else(|error| Delivery::Unreachable { reason: describe(&error.without_url()), retry_after: None })
    }

    async fn try_send(&self, id: &str, body: Vec<u8>) -> reqwest::Result<Delivery> {
        let seconds = Timestamp::now().as_second();
        let request = self
            .http()?
            .post(self.webhook.url.expose_secret())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("coriolis-ovm-exporter/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signatures(&self.webhook.keys, id, seconds, &body));
        let mut answer = request.body(body).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut length = 0;
        // The status has decided. A body that never ends, or breaks, changes nothing.
        while let Ok(Some(piece)) = answer.chunk().await
            && length < MAX_ANSWER
        {
            length += piece.len();
        }
        let text = format!("answers {status}");
        Ok(match status {
            status if status.is_success() => Delivery::Delivered(text),
            StatusCode::GONE => Delivery::Gone(text),
            status if status.is_redirection() => Delivery::Refused(format!("{text}; redirects are not followed")),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => unreachable(text, &headers),
            status if status.is_client_error() => Delivery::Refused(text),
            _ => unreachable(text, &headers),
        })
    }
}

fn unreachable(reason: String, headers: &http::HeaderMap) -> Delivery {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after =
        value.and_then(|value| pause(value.trim(), Timestamp::now())).map(|pause| pause.min(MAX_RETRY_AFTER));
    Delivery::Unreachable { reason, retry_after }
}

/// The value of `Retry-After` (RFC 9110, 10.2.3): seconds or a date. A date that has passed is no pause.
fn pause(value: &str, now: Timestamp) -> Option<Duration> {
    let seconds = value.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| {
        let until = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
        Some(until.duration_since(now).try_into().unwrap_or_default())
    })
}

fn describe(error: &reqwest::Error) -> String {
    let text = tls::with_causes(error);
    let remedy = if tls::is_invalid_certificate(error) {
        " (name its authority, or the certificate itself, with ca_certificate of the webhook)"
    } else {
        ""
    };
    text + remedy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_seconds_or_dates() {
        let now = "2026-11-28T08:49:37Z".parse().unwrap();
        for (value, expected) in [
            ("120", Some(120)),
            ("Sat, 28 Nov 2026 08:50:37 GMT", Some(60)),
            ("Sat, 28 Nov 2026 08:48:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(pause(value, now), expected.map(Duration::from_secs), "{value:?}");
        }
    }
}
