//! Logs users in and checks tokens.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::manager_address::ManagerAddress;
use crate::app::Error;
use crate::app::admission::{Admission, LogIn};
use crate::app::audit::{Actor, AuditTrail};
use crate::app::tasks::{Service, Tasks};
use crate::auth::{
    Authenticator, BadToken, CheckedToken, ClientAddress, Credentials, LoginError, Requester, Session, Source, Tokens,
    is_reserved_name,
};
use crate::model::AccessRules;
use crate::tls::{AcceptedClients, ClientCertificate};

/// How long to wait for the manager at the start.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Issues and checks tokens, and knows what their users may do.
pub struct Sessions {
    authenticator: Authenticator,
    manager: ManagerAddress,
    admission: Arc<Admission>,
    tokens: Tokens,
    token_lifetime: Duration,
    /// Those of the config, which may be reloaded.
    access: RwLock<Arc<AccessRules>>,
    /// The certificates of clients that are accepted now.
    clients: RwLock<Option<AcceptedClients>>,
    trail: Arc<AuditTrail>,
    tasks: Tasks,
}

impl Service for Sessions {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Sessions {
    pub(crate) fn new(
        (authenticator, manager): (Authenticator, ManagerAddress),
        admission: Arc<Admission>,
        (tokens, token_lifetime): (Tokens, Duration),
        access: AccessRules,
        trail: Arc<AuditTrail>,
        tasks: Tasks,
    ) -> Self {
        let access = RwLock::new(Arc::new(access));
        let clients = RwLock::default();
        Self { authenticator, manager, admission, tokens, token_lifetime, access, clients, trail, tasks }
    }

    pub fn token_lifetime(&self) -> Duration {
        self.token_lifetime
    }

    fn access(&self) -> Arc<AccessRules> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the access rules. They apply to the next request of each user.
    pub(crate) fn set_access(&self, rules: Arc<AccessRules>) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Replaces the certificates of clients that are accepted.
    pub fn set_clients(&self, clients: Option<AcceptedClients>) {
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = clients;
    }

    /// The session of a client whose connection has shown this certificate.
    ///
    /// # Errors
    /// [`Error::UnknownCertificate`] if no rule names it.
    pub fn of_certificate(&self, certificate: &Arc<ClientCertificate>) -> Result<Session, Error> {
        let session = Session::of_certificate(Arc::clone(certificate), &self.access());
        session.ok_or_else(|| Error::UnknownCertificate(certificate.names().join(", ")))
    }

    /// The session of the user of a ticket, with what the rules permit the user now. `None` if the user may not use
    /// tickets any more: the certificate that the ticket was made with is revoked, has expired, or no rule names it.
    pub fn of_ticket(&self, user: String, source: Source) -> Option<Session> {
        if let Source::Certificate(certificate) = &source {
            let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
            clients.as_ref().filter(|clients| clients.accepts(certificate))?;
        }
        Session::of_ticket(user, source, &self.access())
    }

    /// Checks a token and returns its session, with the user's current grants. A connection keeps the last token that
    /// was checked.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str, last: &Mutex<Option<CheckedToken>>) -> Result<Session, BadToken> {
        let rules = self.access();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = last.as_ref().and_then(|last| last.session(token, SystemTime::now(), &rules)) {
            return Ok(session);
        }
        let (session, checked) = self.tokens.check(token, &rules)?;
        *last = checked;
        Ok(session)
    }

    /// Issues a token to the user, who sent a request as `requester`, if the manager accepts the credentials. `on_slot` runs
    /// when the log-in gets its slot; the guard that it returns is held until the manager has answered.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn log_in<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        requester: Requester,
        on_slot: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        let (user, hash) = (credentials.username.clone(), self.tokens.account_hash(&credentials.username));
        let outcome = self.token_for(credentials, requester.address, on_slot).await;
        self.trail.log_in(Actor::unauthenticated(requester), &user, hash, &outcome);
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

    async fn token_for<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        address: Option<ClientAddress>,
        on_slot: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        if is_reserved_name(&credentials.username) {
            tracing::warn!("log-in refused: names with unix: or cert: belong to local users and to certificates");
            return Err(Error::BadCredentials);
        }
        let _slot = self.admission.admit_log_in(LogIn { address }).await?;
        let _guard = on_slot();
        let manager = self.blocking(|sessions| sessions.manager.current().map_err(Error::ManagerUnavailable)).await?;
        let user = &credentials.username;
        match self.authenticator.verify(&manager, &credentials).await {
            Ok(identity) => {
                let token = self.tokens.issue(&identity.subject, SystemTime::now());
                let token = token.map_err(|error| Error::Internal(error.to_string()))?;
                tracing::info!(%user, "logged in");
                Ok(token)
            }
            Err(refusal) => {
                // The name is not logged, because users sometimes type their password there.
                tracing::warn!(cause = %refusal, "log-in refused");
                Err(refusal.into())
            }
        }
    }
}
