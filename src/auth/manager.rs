//! Oracle VM Manager, which knows the users' passwords.

use std::io;
use std::sync::{Mutex, PoisonError};

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::redirect::Policy;
use secrecy::ExposeSecret;

use super::login::{Credentials, LoginError};
use super::session::Identity;
use crate::config;
use crate::dns::HostNames;
use crate::tls::{self, Untrusted};

/// Bytes of an answer that are searched for markup.
const ANSWER_PREFIX: usize = 256;

/// The manager's REST endpoint.
pub struct Manager {
    client: reqwest::Client,
    path: String,
    /// The URL that last refused a request without credentials.
    proven: Mutex<Option<String>>,
}

impl Manager {
    pub(super) fn new(config: &config::Manager) -> io::Result<Self> {
        if config.trust == config::Trust::InsecureSkipVerify {
            tracing::warn!(
                "manager.insecure_skip_verify: the manager's certificate is not verified; passwords can be intercepted"
            );
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(&config.trust)?)
            .dns_resolver(HostNames::read())
            .timeout(config.timeout)
            // A redirection could carry the password to another server.
            .redirect(Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| io::Error::other(describe(&error)))?;
        Ok(Self { client, path: config.path.clone(), proven: Mutex::default() })
    }

    pub(super) async fn verify(&self, endpoint: &str, credentials: &Credentials) -> Result<Identity, LoginError> {
        let Credentials { username, password } = credentials;
        // RFC 7617: a colon would move the border between name and password. The manager would then check another name
        // than the token carries.
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            return Err(LoginError::Refused);
        }
        let url = format!("{endpoint}{}", self.path);
        let request = self.client.get(&url).basic_auth(username, Some(password.expose_secret()));
        ask(&url, request).await?;
        // This URL is unchecked if the manager was unreachable at the start, or has changed since.
        let is_proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&url);
        match if is_proven { Ok(()) } else { self.reach(endpoint).await } {
            // The request without credentials did not succeed, so the manager does check passwords.
            Ok(()) | Err(LoginError::Unclear(_)) => Ok(Identity::of_user(username)),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn reach(&self, endpoint: &str) -> Result<(), LoginError> {
        let url = format!("{endpoint}{}", self.path);
        match ask(&url, self.client.get(&url)).await {
            Err(LoginError::Refused) => {
                *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = Some(url);
                Ok(())
            }
            Ok(()) => Err(LoginError::NoPasswordRequired(url)),
            Err(error) => Err(error),
        }
    }
}

async fn ask(url: &str, request: reqwest::RequestBuilder) -> Result<(), LoginError> {
    let mut answer = request
        .header(ACCEPT, "application/json")
        .send()
        .await
        .map_err(|error| LoginError::Unavailable(describe(&error)))?;
    match answer.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(LoginError::Refused),
        status if status.is_success() => {
            // A log-in page for browsers returns 200 for any password.
            let is_html =
                answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            if is_html && starts_like_markup(&mut answer).await? {
                return Err(LoginError::Unclear(format!("{url} is a web page, not the REST endpoint")));
            }
            Ok(())
        }
        status => Err(LoginError::Unclear(format!("{url} answers {status}"))),
    }
}

async fn starts_like_markup(answer: &mut reqwest::Response) -> Result<bool, LoginError> {
    let mut seen = 0;
    while let Some(piece) = answer.chunk().await.map_err(|error| LoginError::Unavailable(describe(&error)))? {
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

/// The error with its causes, and a remedy for those of TLS.
fn describe(error: &reqwest::Error) -> String {
    if let Some(untrusted @ Untrusted { fingerprint, .. }) = Untrusted::within(error) {
        let url = error.url().map(ToString::to_string).unwrap_or_default();
        return format!(
            "{url}: {untrusted}; name its authority with manager.ca_certificate or, if the manager's own host shows \
             the same fingerprint, the certificate itself with manager.fingerprint = \"{fingerprint}\""
        );
    }
    let text = tls::with_causes(error);
    if !tls::has_no_common_parameters(error) {
        return text;
    }
    text + " (no common TLS version or cipher: an old Java at the manager may not offer TLS 1.2 with ECDHE and AES-GCM; \
            update it there, or put a TLS proxy in front of it)"
}
