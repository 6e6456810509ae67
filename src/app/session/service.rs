//! Logging in, and checking tokens.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::manager_address::ManagerAddress;
use crate::app::Error;
use crate::app::audit::{Actor, AuditTrail};
use crate::app::tasks::{Service, Tasks};
use crate::auth::{Authenticator, BadToken, Credentials, LoginError, Session, Tokens};

/// How long the start waits for the manager.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Issues and checks tokens.
pub struct Sessions {
    authenticator: Authenticator,
    address: ManagerAddress,
    tokens: Tokens,
    token_lifetime: Duration,
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
        (authenticator, address): (Authenticator, ManagerAddress),
        (tokens, token_lifetime): (Tokens, Duration),
        trail: Arc<AuditTrail>,
        tasks: Tasks,
    ) -> Self {
        Self { authenticator, address, tokens, token_lifetime, trail, tasks }
    }

    pub fn token_lifetime(&self) -> Duration {
        self.token_lifetime
    }

    /// The session that a token is for.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str) -> Result<Session, BadToken> {
        self.tokens.check(token)
    }

    /// A token for the user, who connected from `address`, if the manager accepts the credentials. The guard that
    /// `on_turn` makes is held while the manager is asked.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn log_in<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        address: Option<IpAddr>,
        request_id: Option<Arc<str>>,
        on_turn: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        let (user, hash) = (credentials.username.clone(), self.tokens.account_hash(&credentials.username));
        let outcome = self.token_for(credentials, on_turn).await;
        self.trail.log_in(Actor::stranger(address, request_id), &user, hash, &outcome);
        outcome
    }

    /// Checks that the manager refuses a request without credentials: one that accepts it would accept any password. If
    /// the manager cannot be asked now, it is asked again before the first log-in.
    ///
    /// # Errors
    /// [`LoginError`]; nothing is known of a manager that does not answer in time.
    pub(crate) async fn prove_manager(self: &Arc<Self>) -> Result<(), LoginError> {
        let address = self.blocking(|sessions| Ok(sessions.address.now())).await;
        // Without an address the start has failed, or has logged why.
        let Ok(Ok(address)) = address else { return Ok(()) };
        match tokio::time::timeout(PROOF_TIMEOUT, self.authenticator.reach(&address)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!(manager = address, "log-in is not possible for now: the manager does not answer");
                Ok(())
            }
        }
    }

    async fn token_for<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        on_turn: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        let slot = self.authenticator.login_slot().await?;
        let _asking = on_turn();
        let address = self.blocking(|sessions| sessions.address.now().map_err(Error::ManagerUnavailable)).await?;
        let user = &credentials.username;
        match self.authenticator.verify(&slot, &address, &credentials).await {
            Ok(identity) => {
                let token = self.tokens.issue(&identity.subject, SystemTime::now());
                let token = token.map_err(|error| Error::Internal(error.to_string()))?;
                tracing::info!(%user, "logged in");
                Ok(token)
            }
            Err(refusal) => {
                // What a stranger types as a name may be a password: the name is not logged.
                tracing::warn!(cause = %refusal, "log-in refused");
                Err(refusal.into())
            }
        }
    }
}
