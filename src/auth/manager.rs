//! The host's manager: it alone knows which passwords are good.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::trust::{self, Untrusted};
use crate::config;

/// What a user logs in with. The password is never printed.
#[derive(Debug)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: SecretString,
}

/// Why credentials are not known to be good.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The manager says that they are not.
    #[error("the manager refuses this user name or password")]
    Refused,
    /// The manager does not answer.
    #[error("the manager cannot be asked: {0}")]
    Unavailable(String),
    /// The manager's answer says neither yes nor no.
    #[error("the manager cannot be asked: {0}")]
    Unclear(String),
    /// Too many are asking at once.
    #[error("too many log-ins at once")]
    Busy,
    /// What answers there lets in anybody: its word on a password is worth nothing.
    #[error("{0} lets in who gives no password at all")]
    LetsAnybodyIn(String),
}

/// Log-ins about which the manager is asked at a time: strangers cannot make us flood it.
const CONCURRENCY: usize = 16;

/// Log-ins that wait for one of these turns. Any more are refused at once: a manager that does not answer must not
/// make log-ins pile up.
const QUEUE: usize = 32;

/// Bytes of an answer that are looked at.
const ANSWER_PREFIX: usize = 256;

/// A turn to ask the manager, free again when this is dropped.
#[derive(Debug)]
pub struct LoginSlot<'a> {
    _asking: SemaphorePermit<'a>,
    _place: SemaphorePermit<'a>,
}

/// The manager's REST endpoint.
pub struct Manager {
    client: reqwest::Client,
    path: String,
    timeout: Duration,
    asking: Semaphore,
    /// Places for the log-ins that ask, and for those that wait for a turn.
    places: Semaphore,
    /// The URL that was last seen to refuse who gives no password.
    proven: Mutex<Option<String>>,
}

impl Manager {
    /// The manager that the config names.
    ///
    /// # Errors
    /// Where the certificates that it is checked against cannot be read.
    pub fn new(config: &config::Manager) -> std::io::Result<Self> {
        if config.trust == config::Trust::InsecureSkipVerify {
            tracing::warn!("manager.insecure_skip_verify: passwords go to whoever answers at ovm_endpoint");
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(trust::client_config(&config.trust)?)
            .timeout(config.timeout)
            // A redirection could carry the password to anybody.
            .redirect(Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| std::io::Error::other(describe(&error)))?;
        let (asking, places) = (Semaphore::new(CONCURRENCY), Semaphore::new(CONCURRENCY + QUEUE));
        let (path, timeout) = (config.path.clone(), config.timeout);
        Ok(Self { client, path, timeout, asking, places, proven: Mutex::default() })
    }

    /// Waits for a turn to ask the manager.
    ///
    /// # Errors
    /// [`ManagerError::Busy`] at once where too many wait already, else where no login_slot comes in time.
    pub async fn login_slot(&self) -> Result<LoginSlot<'_>, ManagerError> {
        let place = self.places.try_acquire().map_err(|_| ManagerError::Busy)?;
        match tokio::time::timeout(self.timeout, self.asking.acquire()).await {
            Ok(Ok(asking)) => Ok(LoginSlot { _asking: asking, _place: place }),
            _ => Err(ManagerError::Busy),
        }
    }

    /// Asks the manager at `endpoint`, such as `https://manager.example:7002`, whether `credentials`
    /// are good.
    ///
    /// # Errors
    /// [`ManagerError`]; an outage is never told as a wrong password.
    pub async fn verify(
        &self,
        _turn: &LoginSlot<'_>,
        endpoint: &str,
        credentials: &Credentials,
    ) -> Result<(), ManagerError> {
        let Credentials { username, password } = credentials;
        // RFC 7617: a colon would move the border between name and password, and so the name that
        // the manager checks would not be the one that the token carries.
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            return Err(ManagerError::Refused);
        }
        let url = format!("{endpoint}{}", self.path);
        let request = self.client.get(&url).basic_auth(username, Some(password.expose_secret()));
        ask(&url, request).await?;
        // It could not be asked at the start, or is another one since.
        let is_proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&url);
        match if is_proven { Ok(()) } else { self.reach(endpoint).await } {
            // Any other answer than a success differs from that to the credentials, and so proves that they count.
            Ok(()) | Err(ManagerError::Unclear(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the manager at `endpoint` without credentials, which it has to refuse.
    ///
    /// # Errors
    /// [`ManagerError::LetsAnybodyIn`] where it does not, [`ManagerError::Unavailable`] where it cannot be reached,
    /// [`ManagerError::Unclear`] where it answers with something else.
    pub async fn reach(&self, endpoint: &str) -> Result<(), ManagerError> {
        let url = format!("{endpoint}{}", self.path);
        match ask(&url, self.client.get(&url)).await {
            Err(ManagerError::Refused) => {
                *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = Some(url);
                Ok(())
            }
            Ok(()) => Err(ManagerError::LetsAnybodyIn(url)),
            Err(error) => Err(error),
        }
    }
}

async fn ask(url: &str, request: reqwest::RequestBuilder) -> Result<(), ManagerError> {
    let mut answer = request
        .header(ACCEPT, "application/json")
        .send()
        .await
        .map_err(|error| ManagerError::Unavailable(describe(&error)))?;
    match answer.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ManagerError::Refused),
        status if status.is_success() => {
            // A log-in page for people says 200 to everybody.
            let is_html =
                answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            if is_html && starts_like_markup(&mut answer).await? {
                return Err(ManagerError::Unclear(format!("{url} is a web page, not the REST endpoint")));
            }
            Ok(())
        }
        status => Err(ManagerError::Unclear(format!("{url} answers {status}"))),
    }
}

async fn starts_like_markup(answer: &mut reqwest::Response) -> Result<bool, ManagerError> {
    let mut seen = 0;
    while let Some(piece) = answer.chunk().await.map_err(|error| ManagerError::Unavailable(describe(&error)))? {
        if let Some(first) = piece.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return Ok(*first == b'<');
        }
        seen += piece.len();
        if seen > ANSWER_PREFIX {
            break;
        }
    }
    Ok(false)
}

/// The error with all its causes, and what they mean where that is not plain.
fn describe(error: &reqwest::Error) -> String {
    if let Some(untrusted @ Untrusted { fingerprint, .. }) = Untrusted::within(error) {
        let url = error.url().map(ToString::to_string).unwrap_or_default();
        return format!(
            "{url}: {untrusted}; name its authority with manager.ca_certificate or, where the manager's own host shows \
             the same fingerprint, itself with manager.fingerprint = \"{fingerprint}\""
        );
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    if text.contains("HandshakeFailure") || text.contains("ProtocolVersion") {
        text += " (no common TLS version or cipher: an old Java at the manager may offer none of TLS 1.2 with ECDHE \
                 and AES-GCM; update it there, or put a TLS proxy before it)";
    }
    text
}
