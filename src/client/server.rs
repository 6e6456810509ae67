//! A service, as all threads of the client share it: its hosts, the tokens, and how long to be patient.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::RequestBuilder;
use secrecy::ExposeSecret;

use super::address::Address;
use super::backoff::{Backoff, Cancel};
use super::connection::{Body, Connection, READ_TIMEOUT};
use super::credentials::Credentials;
use super::error::ClientError;
use super::missing::Doubt;
use super::pool::{Host, Hosts, Next};
use super::token_state::TokenState;
use crate::config::Trust;

/// What the user should know, although the work goes on.
pub enum Notice<'a> {
    /// The service does not answer the first request. Others follow for this time.
    Waits { service: &'a Server, error: &'a ClientError, patience: Duration },
    /// Another host of the pool is asked instead. Said once of each host.
    GoesOn { error: &'a ClientError, with: &'a Address },
    /// A host lacks what another has, so that it is not asked again.
    NotOfPool { host: &'a Address, has: &'a Address, what: &'a str },
}

pub struct ServerOptions {
    /// Of one pool, the preferred one first. At least one.
    pub hosts: Vec<Host>,
    pub trust: Trust,
    pub credentials: Credentials,
    /// How long to try again without any success.
    pub patience: Duration,
    pub on_notice: fn(&Notice<'_>),
    pub cancel: Cancel,
}

/// Clones share the tokens, and what is known of the hosts.
#[derive(Clone)]
pub struct Server {
    pub(super) shared: Arc<Shared>,
    /// The host that is asked now.
    current: Arc<AtomicUsize>,
}

pub(super) struct Shared {
    pub hosts: Hosts,
    trust: Trust,
    pub credentials: Credentials,
    pub tokens: Mutex<TokenState>,
    patience: Duration,
    pub on_notice: fn(&Notice<'_>),
    cancel: Cancel,
    /// Whether the service has answered, or the user knows that it does not.
    is_known: AtomicBool,
}

impl Server {
    pub fn new(options: ServerOptions) -> Self {
        let ServerOptions { hosts, trust, credentials, patience, on_notice, cancel } = options;
        let tokens = Mutex::new(TokenState::new(&hosts, &credentials));
        let (hosts, is_known) = (Hosts::new(hosts), AtomicBool::new(false));
        let shared = Shared { hosts, trust, credentials, tokens, patience, on_notice, cancel, is_known };
        Self { shared: Arc::new(shared), current: Arc::default() }
    }

    /// The hosts of the pool.
    pub fn hosts(&self) -> &[Host] {
        self.shared.hosts.all()
    }

    pub fn cancel(&self) -> &Cancel {
        &self.shared.cancel
    }

    pub(super) fn patience(&self) -> Duration {
        self.shared.patience
    }

    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.shared.patience)
    }

    /// The same service for work that has a host of its own.
    #[must_use]
    pub fn beginning_at(&self, host: Option<usize>) -> Self {
        let begin = host.filter(|host| self.shared.hosts.is_well(*host));
        let begin = begin.unwrap_or_else(|| self.current_host());
        Self { shared: Arc::clone(&self.shared), current: Arc::new(AtomicUsize::new(begin)) }
    }

    fn current_host(&self) -> usize {
        self.shared.hosts.chosen(&self.current)
    }

    /// Tells the user of the first error that is waited for.
    fn note(&self, error: &ClientError) {
        let Shared { patience, is_known, on_notice, .. } = &*self.shared;
        let is_news = error.is_transient() && !matches!(error, ClientError::GaveUp { .. });
        if is_news && !is_known.swap(true, Ordering::Relaxed) && !patience.is_zero() {
            on_notice(&Notice::Waits { service: self, error, patience: *patience });
        }
    }

    /// A connection for the calling thread.
    ///
    /// # Errors
    /// The certificates that it should trust cannot be read.
    pub fn client(&self) -> Result<Client, ClientError> {
        let client = Client {
            server: self.clone(),
            connections: self.hosts().iter().map(|_| OnceCell::new()).collect(),
            asked: Cell::new(self.current_host()),
            doubt: RefCell::default(),
        };
        client.connection(self.current_host())?;
        Ok(client)
    }
}

/// The addresses of its hosts, as a user gives them.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts().iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", host.address)?;
        }
        Ok(())
    }
}

/// A thread's connections to the hosts of a service.
pub struct Client {
    pub(super) server: Server,
    connections: Vec<OnceCell<Connection>>,
    /// The host that the last request went to.
    pub(super) asked: Cell<usize>,
    pub(super) doubt: RefCell<Doubt>,
}

/// Makes a request for a host.
pub(super) type Build<'a> = &'a dyn Fn(&Connection) -> RequestBuilder;

impl Client {
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The connection to a host.
    pub(super) fn connection(&self, host: usize) -> Result<&Connection, ClientError> {
        let cell = &self.connections[host];
        if cell.get().is_none() {
            let Shared { hosts, trust, cancel, .. } = &*self.server.shared;
            let _ = cell.set(Connection::new(hosts.address(host), trust, cancel)?);
        }
        cell.get().ok_or_else(|| ClientError::Setup("no connection".to_owned()))
    }

    /// Sends a request once, with the token. An expired token is renewed.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub(super) fn send_once(&self, build: Build<'_>) -> Result<Body<'_>, ClientError> {
        self.send_within(READ_TIMEOUT, build)
    }

    /// As [`Client::send_once`]; the head of the response has to arrive within `limit`. The request goes to another host
    /// if one did not get it.
    pub(super) fn send_within(&self, limit: Duration, build: Build<'_>) -> Result<Body<'_>, ClientError> {
        let mut left = self.server.shared.hosts.in_use().len();
        loop {
            self.server.cancel().check()?;
            let host = self.server.current_host();
            self.asked.set(host);
            left = left.saturating_sub(1);
            match self.ask(host, limit, build) {
                Err(error) if error.was_not_sent() && left > 0 => {
                    let error = self.named(error);
                    if !self.go_on(&error) {
                        return Err(error);
                    }
                }
                Ok(body) => {
                    self.server.shared.hosts.answered(host);
                    self.answered(build);
                    return Ok(body);
                }
                Err(error) => {
                    if error.status() == Some(404) {
                        self.is_missing(build);
                    }
                    return Err(self.named(error));
                }
            }
        }
    }

    /// Sends a request to one host, and parses its response.
    pub(super) fn of_host<T: serde::de::DeserializeOwned>(
        &self,
        host: usize,
        build: Build<'_>,
    ) -> Result<T, ClientError> {
        self.asked.set(host);
        let result = self.ask(host, READ_TIMEOUT, build).and_then(Body::json).map_err(|error| self.named(error));
        match &result {
            Ok(_) => self.server.shared.hosts.answered(host),
            Err(error) => drop(self.go_on(error)),
        }
        result
    }

    /// Asks one host, with a token that it accepts.
    fn ask(&self, host: usize, limit: Duration, build: Build<'_>) -> Result<Body<'_>, ClientError> {
        let connection = self.connection(host)?;
        if matches!(self.server.shared.credentials, Credentials::Peer) {
            return connection.send(build(connection), Duration::MAX);
        }
        let mut token = self.token(host, None)?;
        // One of its own, and in a pool one of another host.
        let mut renewals = self.server.hosts().len().min(2);
        loop {
            match connection.send(build(connection).bearer_auth(token.expose_secret()), limit) {
                Err(error) if error.status() == Some(401) && renewals > 0 => {
                    renewals -= 1;
                    token = self.token(host, Some((&token, error)))?;
                }
                result => return result,
            }
        }
    }

    /// The error with the address of the host, if there are several.
    pub fn named(&self, error: ClientError) -> ClientError {
        let hosts = &self.server.shared.hosts;
        if hosts.is_pool() { error.of_host(hosts.address(self.asked.get())) } else { error }
    }

    /// Chooses another host after an error of the one that was asked. Returns whether there is one.
    fn go_on(&self, error: &ClientError) -> bool {
        let Shared { hosts, on_notice, .. } = &*self.server.shared;
        if hosts.is_pool() && error.status() == Some(401) && self.is_password_refused() {
            return false;
        }
        match hosts.go_on(&self.server.current, self.asked.get(), error) {
            Next::None => false,
            Next::Other { host, is_news } => {
                if is_news {
                    on_notice(&Notice::GoesOn { error, with: hosts.address(host) });
                }
                true
            }
        }
    }

    /// After an error: returns when the same request should be sent again. Another host is asked at once, once each.
    ///
    /// # Errors
    /// `error` itself if another attempt does not help, or [`ClientError::GaveUp`].
    pub fn wait(&self, backoff: &mut Backoff, error: ClientError) -> Result<(), ClientError> {
        let error = self.doubted(self.named(error));
        if self.go_on(&error) && backoff.skips_delay(self.server.shared.hosts.in_use().len()) {
            return self.server.cancel().check();
        }
        self.server.note(&error);
        backoff.wait(error, self.server.cancel()).map_err(|error| self.explained(error))
    }

    /// Sends a request that may be sent again, until it succeeds or patience ends.
    ///
    /// # Errors
    /// A lasting error, or [`ClientError::GaveUp`].
    pub(super) fn send(&self, build: Build<'_>) -> Result<Body<'_>, ClientError> {
        self.retried(|| self.send_once(build))
    }

    /// Sends a request that may be sent again, and parses its response.
    ///
    /// # Errors
    /// A lasting error, or [`ClientError::GaveUp`].
    pub(super) fn send_json<T: serde::de::DeserializeOwned>(&self, build: Build<'_>) -> Result<T, ClientError> {
        self.retried(|| self.send_once(build)?.json())
    }

    pub(super) fn retried<T>(&self, attempt: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
        let mut backoff = self.server.backoff();
        loop {
            match attempt() {
                Ok(value) => {
                    self.server.shared.is_known.store(true, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(error) => self.wait(&mut backoff, error)?,
            }
        }
    }
}
