//! A service, as all threads of the client share it: its address, the token, and how long to be patient.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};

use super::address::Address;
use super::backoff::{Backoff, Cancel};
use super::connection::{Body, Connection, READ_TIMEOUT};
use super::credentials::{Credentials, Password, TokenCache, Tokens};
use super::error::{ClientError, Refusal};
use crate::api;
use crate::config::Trust;

/// Called when a service does not answer, with the error of the first attempt and the time for which others follow.
pub type OnWait = fn(&Address, &ClientError, Duration);

pub struct ServerOptions {
    pub address: Address,
    pub trust: Trust,
    pub credentials: Credentials,
    pub token_cache: Option<TokenCache>,
    /// How long to try again without any success.
    pub patience: Duration,
    /// Called once at most, before the service has answered for the first time.
    pub on_wait: OnWait,
    pub cancel: Cancel,
}

/// Clones share the token.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    options: ServerOptions,
    state: Mutex<State>,
    /// Whether the service has answered, or the user knows that it does not.
    is_known: AtomicBool,
}

#[derive(Default)]
struct State {
    current: Option<Tokens>,
    /// The service refused the password. It is not sent again, because accounts may be locked after some attempts.
    refusal: Option<Refusal>,
}

impl Server {
    pub fn new(options: ServerOptions) -> Self {
        let current = match &options.credentials {
            Credentials::Token(token) => Some(Tokens { token: token.clone(), refresh: None }),
            Credentials::Password(_) | Credentials::Cached => options.token_cache.as_ref().and_then(TokenCache::load),
            Credentials::Peer => None,
        };
        let state = Mutex::new(State { current, refusal: None });
        Self(Arc::new(Shared { options, state, is_known: AtomicBool::new(false) }))
    }

    pub fn address(&self) -> &Address {
        &self.0.options.address
    }

    pub fn cancel(&self) -> &Cancel {
        &self.0.options.cancel
    }

    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.0.options.patience)
    }

    /// Tells the user of the first error that is waited for.
    fn note<T>(&self, result: &Result<T, ClientError>) {
        let Shared { options, is_known, .. } = &*self.0;
        let error = result.as_ref().err().filter(|it| it.is_transient() && !matches!(it, ClientError::GaveUp { .. }));
        let was_known = (result.is_ok() || error.is_some()) && is_known.swap(true, Ordering::Relaxed);
        if let Some(error) = error.filter(|_| !was_known && !options.patience.is_zero()) {
            (options.on_wait)(&options.address, error, options.patience);
        }
    }

    /// A connection for the calling thread.
    ///
    /// # Errors
    /// The certificates that it should trust cannot be read.
    pub fn client(&self) -> Result<Client, ClientError> {
        let connection = Connection::new(&self.0.options.address, &self.0.options.trust, self.cancel())?;
        Ok(Client { server: self.clone(), connection })
    }
}

/// A thread's connection to a service, with the token of all.
pub struct Client {
    server: Server,
    connection: Connection,
}

impl Client {
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.connection.request(method, path)
    }

    pub(super) fn request_outside(&self, method: Method, path: &str) -> RequestBuilder {
        self.connection.request_outside(method, path)
    }

    /// Sends a request once, with the token. An expired token is renewed.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub(super) fn send_once(&self, build: &dyn Fn() -> RequestBuilder) -> Result<Body<'_>, ClientError> {
        self.send_within(READ_TIMEOUT, build)
    }

    /// As [`Client::send_once`]; the head of the response has to arrive within `limit`.
    pub(super) fn send_within(
        &self,
        limit: Duration,
        build: &dyn Fn() -> RequestBuilder,
    ) -> Result<Body<'_>, ClientError> {
        self.server.cancel().check()?;
        if matches!(self.server.0.options.credentials, Credentials::Peer) {
            return self.connection.send(build(), Duration::MAX);
        }
        let token = self.token(None)?;
        match self.connection.send(build().bearer_auth(token.expose_secret()), limit) {
            Err(error) if error.status() == Some(401) => {
                let renewed = self.token(Some((&token, error)))?;
                self.connection.send(build().bearer_auth(renewed.expose_secret()), limit)
            }
            result => result,
        }
    }

    /// Sends a request that may be sent again, until it succeeds or patience ends.
    ///
    /// # Errors
    /// A lasting error, or [`ClientError::GaveUp`].
    pub(super) fn send(&self, build: &dyn Fn() -> RequestBuilder) -> Result<Body<'_>, ClientError> {
        self.retried(|| self.send_once(build))
    }

    /// Sends a request that may be sent again, and parses its response.
    ///
    /// # Errors
    /// A lasting error, or [`ClientError::GaveUp`].
    pub(super) fn send_json<T: serde::de::DeserializeOwned>(
        &self,
        build: &dyn Fn() -> RequestBuilder,
    ) -> Result<T, ClientError> {
        self.retried(|| self.send_once(build)?.json())
    }

    fn retried<T>(&self, attempt: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
        let mut backoff = self.server.backoff();
        loop {
            let result = attempt();
            self.server.note(&result);
            match result {
                Ok(value) => return Ok(value),
                Err(error) => backoff.wait(error, self.server.cancel())?,
            }
        }
    }

    /// The token, or a new one if the service refused `refused`. One thread renews it for all.
    fn token(&self, refused: Option<(&SecretString, ClientError)>) -> Result<SecretString, ClientError> {
        let shared = &self.server.0;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&state.current, &refused) {
            (Some(current), None) => return Ok(current.token.clone()),
            (Some(current), Some((old, _))) if current.token.expose_secret() != old.expose_secret() => {
                return Ok(current.token.clone());
            }
            _ => {}
        }
        if let Some(tokens) = state.current.take() {
            match self.renewed(&tokens) {
                Ok(Some(new)) => return Ok(state.current.insert(new).token.clone()),
                Ok(None) => {}
                Err(error) => {
                    // The refresh token may still be good when the service can be reached again.
                    state.current = Some(tokens);
                    return Err(error);
                }
            }
        }
        let Credentials::Password(password) = &shared.options.credentials else {
            let error = refused.map(|(_, error)| error);
            return Err(error.unwrap_or_else(|| ClientError::Setup("no credentials".to_owned())));
        };
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone().into());
        }
        let new = match self.retried(|| self.log_in(password)) {
            Err(ClientError::Refused(refusal)) if refusal.status == 401 => {
                state.refusal = Some(refusal.clone());
                return Err(refusal.into());
            }
            result => result?,
        };
        self.store(&new);
        Ok(state.current.insert(new).token.clone())
    }

    /// New tokens for refused ones. `None` if the refresh token is of no use either.
    fn renewed(&self, refused: &Tokens) -> Result<Option<Tokens>, ClientError> {
        if matches!(self.server.0.options.credentials, Credentials::Token(_)) {
            return Ok(None);
        }
        let cache = self.server.0.options.token_cache.as_ref();
        // Another process may be renewing the same tokens, or has done it. Without the lock, both may lose them.
        let _lock = cache.map(TokenCache::lock);
        if let Some(cached) = cache.and_then(TokenCache::load)
            && cached.token.expose_secret() != refused.token.expose_secret()
        {
            return Ok(Some(cached));
        }
        let Some(refresh) = refused.refresh.clone() else { return Ok(None) };
        let body = serde_json::to_vec(&api::Refresh { refresh_token: refresh }).map_err(std::io::Error::from)?;
        match self.retried(|| self.post_for_tokens("/auth/refresh", body.clone())) {
            Ok(new) => {
                self.store(&new);
                Ok(Some(new))
            }
            // Its answer may have been lost, so that it counts as used.
            Err(error) if error.status().is_some_and(|status| matches!(status, 401 | 404)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn store(&self, tokens: &Tokens) {
        if let Some(cache) = &self.server.0.options.token_cache
            && let Err(error) = cache.store(tokens)
        {
            tracing::warn!(%error, "cannot cache the token");
            // A refresh token in it is used up. Its second use would end the log-in.
            if let Err(error) = cache.remove() {
                tracing::warn!(%error, "cannot remove the former token from the cache");
            }
        }
    }

    fn log_in(&self, Password { user, password }: &Password) -> Result<Tokens, ClientError> {
        let login = api::Login { username: user.clone(), password: password.clone(), refresh: true };
        self.post_for_tokens("/auth/login", serde_json::to_vec(&login).map_err(std::io::Error::from)?)
    }

    fn post_for_tokens(&self, path: &str, body: Vec<u8>) -> Result<Tokens, ClientError> {
        self.server.cancel().check()?;
        let request = self.connection.request(Method::POST, path).body(body);
        let request = request.header("content-type", "application/json");
        let api::Token { token, refresh_token, .. } = self.connection.send(request, READ_TIMEOUT)?.json()?;
        Ok(Tokens { token: token.into(), refresh: refresh_token })
    }

    /// Logs in, even if there is a token.
    ///
    /// # Errors
    /// The credentials are refused, or the service cannot be reached.
    pub fn log_in_now(&self) -> Result<(), ClientError> {
        *self.server.0.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
        self.token(None).map(|_| ())
    }
}
