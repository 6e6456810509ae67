//! Logs users in and checks tokens.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use secrecy::SecretString;

use super::manager_address::ManagerAddress;
use super::rechecks::Rechecks;
use super::revocations::{Revocations, now};
use super::throttle::{Attempt, Throttle};
use crate::api;
use crate::app::Error;
use crate::app::admission::{Admission, LogIn, Permit};
use crate::app::audit::{self, Actor, AuditTrail, Outcome};
use crate::app::common::Common;
use crate::app::tasks::{Service, Tasks};
use crate::auth::{
    AuditKey, Authenticator, BadToken, CheckedToken, ClientAddress, Credentials, LoginError, NewToken, Proof,
    RefreshToken, Requester, Session, Source, Tokens, is_reserved_name, new_log_in,
};
use crate::config::{self, Config};
use crate::metrics::{Metrics, Throttled};
use crate::model::AccessRules;
use crate::store::Store;
use crate::tls::{AcceptedClients, ClientCertificate};

/// How long to wait for the manager at the start.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Issues and checks tokens, and knows what their users may do.
pub struct Sessions {
    authenticator: Authenticator,
    manager: ManagerAddress,
    pub(super) admission: Arc<Admission>,
    pub(super) tokens: Tokens,
    /// How long a token is valid that can be renewed.
    access_lifetime: Duration,
    /// Whether there are tokens that are valid as long as the log-in.
    has_long_tokens: bool,
    pub(super) revocations: Revocations,
    pub(super) rechecks: Option<Rechecks>,
    throttle: Throttle,
    /// Those of the config, which may be reloaded.
    access: RwLock<Arc<AccessRules>>,
    /// The certificates of clients that are accepted now.
    clients: RwLock<Option<AcceptedClients>>,
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) trail: Arc<AuditTrail>,
    tasks: Tasks,
}

/// A log-in, and what the client wants of it.
pub struct LogInRequest {
    pub credentials: Credentials,
    pub requester: Requester,
    /// What the throttle counts as one client. `None` behind a proxy that does not name it.
    pub origin: Option<ClientAddress>,
    /// Whether it wants a refresh token.
    pub is_renewable: bool,
}

impl Service for Sessions {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Sessions {
    /// # Errors
    /// The database cannot be read.
    pub(crate) fn new(
        common: &Common,
        authenticator: Authenticator,
        manager: ManagerAddress,
        key: &SecretString,
        config: &Config,
    ) -> Result<Self, Error> {
        let Common { admission, trail, metrics, store, tasks, .. } = common.clone();
        Ok(Self {
            authenticator,
            manager,
            admission,
            tokens: Tokens::new(key, config.jwt.time_to_live),
            access_lifetime: config.jwt.access_time_to_live,
            has_long_tokens: config.jwt.long_tokens,
            revocations: Revocations::new(store.clone())?,
            rechecks: config.jwt.recheck_after.map(Rechecks::new),
            throttle: Throttle::new(config.login),
            access: RwLock::new(Arc::new(config.access.clone())),
            clients: RwLock::default(),
            store,
            metrics,
            trail,
            tasks,
        })
    }

    /// How long a token is valid that cannot be renewed.
    pub fn token_lifetime(&self) -> Duration {
        if self.has_long_tokens { self.tokens.time_to_live() } else { self.access_lifetime }
    }

    fn access(&self) -> Arc<AccessRules> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the access rules. They apply to the next request of each user.
    pub(crate) fn set_access(&self, rules: Arc<AccessRules>) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Replaces the limits of failed log-ins.
    pub(crate) fn set_limits(&self, limits: config::Login) {
        self.throttle.set_limits(limits);
    }

    /// Replaces the certificates of clients that are accepted, and ends the downloads of the others. Those with tickets
    /// come through connections that show no certificate.
    pub fn set_clients(&self, clients: Option<AcceptedClients>) {
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = clients;
        self.admission.end_exports_if(|session| !self.accepts_source(session.source()));
    }

    /// Whether the certificate is still accepted, if the user has proven who they are with one.
    fn accepts_source(&self, source: &Source) -> bool {
        let Source::Certificate(certificate) = source else { return true };
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.as_ref().is_some_and(|clients| clients.accepts(certificate))
    }

    /// The session of a client whose connection has shown this certificate.
    ///
    /// # Errors
    /// [`Error::UnknownCertificate`] if no rule names it.
    pub fn of_certificate(&self, certificate: &Arc<ClientCertificate>) -> Result<Session, Error> {
        let session = Session::of_certificate(Arc::clone(certificate), &self.access());
        session.ok_or_else(|| Error::UnknownCertificate(certificate.names().join(", ")))
    }

    /// The session of the user of a ticket, with what the rules permit the user now. The user had proven who they are at
    /// this time, milliseconds since 1970. `None` if the user may not use the ticket any more: the user's tokens of that
    /// time are revoked; the certificate that the ticket was made with is revoked, has expired, or no rule names it.
    pub fn of_ticket(&self, user: String, source: Source, made_ms: u64) -> Option<Session> {
        if self.revocations.includes_all_until(&user, made_ms) {
            return None;
        }
        if !self.accepts_source(&source) {
            return None;
        }
        let session = Session::of_ticket(user, source, &self.access())?;
        Some(session.with_proof(Proof { made_ms, log_in: None }))
    }

    /// Whether the token or the ticket of a session was revoked meanwhile.
    pub(crate) fn is_revoked(&self, session: &Session) -> bool {
        session.proof().is_some_and(|proof| self.revocations.includes_proof(session.subject(), proof))
    }

    /// Replaces the signing key, also for the proofs of the audit. Tokens of the former key are good for `overlap`.
    /// Returns whether it is another key.
    pub fn set_key(&self, key: &SecretString, overlap: Duration) -> bool {
        let is_new = self.tokens.keys().replace(key.clone(), overlap);
        if is_new {
            audit::replace_key(AuditKey::new(key));
        }
        is_new
    }

    /// Checks a token and returns its session, with the user's current grants. A connection keeps the last token that
    /// was checked.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str, last: &Mutex<Option<KeptToken>>) -> Result<Session, BadToken> {
        let rules = self.access();
        // Read first: a revocation after the check changes it.
        let revision = (self.tokens.keys().revision(), self.revocations.revision());
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = last.as_ref().filter(|kept| kept.revision == revision)
            && kept.token.is(token, SystemTime::now())
        {
            return Ok(kept.token.session(&rules));
        }
        let token = self.valid(token)?;
        let session = token.session(&rules);
        *last = token.can_be_kept().then_some(KeptToken { token, revision });
        Ok(session)
    }

    /// A token that is not revoked.
    pub(super) fn valid(&self, token: &str) -> Result<CheckedToken, BadToken> {
        let token = self.tokens.check(token)?;
        if self.revocations.includes(&token) { Err(BadToken) } else { Ok(token) }
    }

    /// Issues tokens to a user, if the manager accepts the credentials. `on_slot` runs when the log-in gets its slot; the
    /// guard that it returns is held until the manager has answered.
    ///
    /// Disconnecting while queued cancels the log-in. Once the manager is asked, its answer counts.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], [`Error::ManagerUnavailable`], [`Error::Throttled`], [`Error::TooManyFailures`].
    pub async fn log_in<G: Send + 'static>(
        self: &Arc<Self>,
        request: LogInRequest,
        on_slot: impl FnOnce() -> G + Send,
    ) -> Result<api::Token, Error> {
        let LogInRequest { credentials, requester, origin, is_renewable } = request;
        let attempt = self.throttle.attempt(origin, &credentials.username);
        let slot = match self.admit(&credentials, &attempt, requester.address).await {
            Ok(slot) => (slot, on_slot()),
            Err(error) => return self.record(requester, &credentials.username, Err(error)),
        };
        self.detached(async move |sessions| {
            let user = credentials.username.clone();
            let verified = sessions.verify(&credentials, &attempt).await;
            drop(slot);
            let outcome = match verified {
                Ok(user) => sessions.begin(user, credentials, is_renewable).await,
                Err(error) => Err(error),
            };
            sessions.record(requester, &user, outcome)
        })
        .await
    }

    /// Records the outcome of a log-in, and returns it.
    fn record<T>(&self, requester: Requester, user: &str, outcome: Result<T, Error>) -> Result<T, Error> {
        match outcome.as_ref().err().and_then(throttled) {
            Some(throttled) => self.metrics.log_in_throttled(throttled),
            None => self.metrics.log_in_ended(Outcome::of(&outcome).name),
        }
        self.trail.log_in(Actor::unauthenticated(requester), user, self.tokens.account_hash(user), &outcome);
        outcome
    }

    /// Checks that the manager refuses a request without credentials: if it accepts that, it accepts any password. If
    /// the manager is unreachable, the check is repeated before the first log-in.
    ///
    /// # Errors
    /// [`LoginError`]. A manager that does not answer in time is not an error.
    pub(crate) async fn prove_manager(self: &Arc<Self>) -> Result<(), LoginError> {
        let address = self.blocking(|sessions| Ok(sessions.manager.current())).await;
        // Without an address, the start has failed or the cause was logged.
        let Ok(Ok(address)) = address else { return Ok(()) };
        match tokio::time::timeout(PROOF_TIMEOUT, self.authenticator.reach(&address)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!(manager = address, "log-in is not possible: the manager does not respond");
                Ok(())
            }
        }
    }

    /// Waits until the manager may be asked.
    async fn admit(
        &self,
        credentials: &Credentials,
        attempt: &Attempt,
        address: Option<ClientAddress>,
    ) -> Result<Permit<LogIn>, Error> {
        if is_reserved_name(&credentials.username) {
            tracing::warn!("log-in refused: names with unix: or cert: belong to local users and to certificates");
            return Err(Error::BadCredentials);
        }
        self.throttle.check(attempt)?;
        let is_known = self.throttle.knows(attempt);
        let slot = self.admission.admit_log_in(LogIn { address, is_known }).await?;
        // Others may have failed while this one waited.
        self.throttle.check(attempt)?;
        Ok(slot)
    }

    async fn verify(self: &Arc<Self>, credentials: &Credentials, attempt: &Attempt) -> Result<String, Error> {
        let verified = self.ask_manager(credentials).await;
        match &verified {
            Ok(user) => {
                self.throttle.succeeded(attempt);
                tracing::info!(%user, "logged in");
            }
            Err(Error::BadCredentials) => self.throttle.failed(attempt),
            Err(_) => {}
        }
        verified
    }

    /// The name of the user, if the manager accepts the credentials. Only for detached operations: connections to the
    /// manager are shared, and one ends with the runtime that has opened it.
    pub(super) async fn ask_manager(self: &Arc<Self>, credentials: &Credentials) -> Result<String, Error> {
        let manager = self.blocking(|sessions| sessions.manager.current().map_err(Error::ManagerUnavailable)).await?;
        match self.authenticator.verify(&manager, credentials).await {
            Ok(identity) => Ok(identity.subject),
            Err(refusal) => {
                // The name is not logged, because users sometimes type their password there.
                tracing::warn!(cause = %refusal, "log-in refused");
                Err(refusal.into())
            }
        }
    }

    /// The tokens of a new log-in.
    async fn begin(
        self: &Arc<Self>,
        user: String,
        credentials: Credentials,
        is_renewable: bool,
    ) -> Result<api::Token, Error> {
        let issued_ms = self.revocations.issue(&user);
        let ends = now().saturating_add(self.tokens.time_to_live().as_secs());
        let internal = |error: &dyn std::fmt::Display| Error::Internal(error.to_string());
        if !is_renewable {
            let log_in = new_log_in().map_err(|error| internal(&error))?;
            let expires = now().saturating_add(self.token_lifetime().as_secs());
            let token = self.sign(&NewToken { user: &user, log_in, issued_ms, expires })?;
            self.keep_issued(issued_ms).await;
            self.keep(log_in, credentials, issued_ms, expires);
            return Ok(api::Token { token, expires_in: None, refresh_token: None });
        }
        let refresh = RefreshToken::first().map_err(|error| internal(&error))?;
        let (log_in, hash, name) = (refresh.log_in(), refresh.hash(), user.clone());
        let times = (issued_ms, ends);
        let begun = self.blocking(move |it| Ok(it.store.sessions().begin(log_in, &name, hash, times, now())?));
        begun.await?;
        self.keep_issued(issued_ms).await;
        self.keep(log_in, credentials, issued_ms, ends);
        self.short_token(&user, &refresh, issued_ms, ends)
    }

    /// Keeps when a token was issued, for a revocation after a restart, if the clock is set back until then. Without it the
    /// user can work too.
    pub(super) async fn keep_issued(self: &Arc<Self>, issued_ms: u64) {
        let Some(until) = self.revocations.due_to_keep(issued_ms) else { return };
        if let Err(error) = self.blocking(move |it| Ok(it.store.sessions().set_issued(until)?)).await {
            tracing::warn!(%error, "cannot keep the time of the newest token");
        }
    }

    /// A token that can be renewed with `refresh`, until the log-in ends.
    pub(super) fn short_token(
        &self,
        user: &str,
        refresh: &RefreshToken,
        issued_ms: u64,
        ends: u64,
    ) -> Result<api::Token, Error> {
        let now = now();
        let expires = now.saturating_add(self.access_lifetime.as_secs()).min(ends);
        let token = self.sign(&NewToken { user, log_in: refresh.log_in(), issued_ms, expires })?;
        let refresh_token = Some(refresh.text().clone());
        Ok(api::Token { token, expires_in: Some(expires.saturating_sub(now)), refresh_token })
    }

    fn sign(&self, new: &NewToken<'_>) -> Result<String, Error> {
        self.tokens.sign(new).map_err(|error| Error::Internal(error.to_string()))
    }
}

/// The last token of a connection. It is good while neither the keys nor the revocations change.
#[derive(Debug)]
pub struct KeptToken {
    token: CheckedToken,
    revision: (u64, u64),
}

fn throttled(error: &Error) -> Option<Throttled> {
    match error {
        Error::Throttled => Some(Throttled::Queue),
        Error::TooManyFailures { of_account: true, .. } => Some(Throttled::Account),
        Error::TooManyFailures { of_account: false, .. } => Some(Throttled::Address),
        _ => None,
    }
}
