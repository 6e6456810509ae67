//! The journey from a user's name and password to a token.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::app::file_cache::FileCache;
use crate::app::{App, Error, ops::start_faults};
use crate::auth::{Credentials, LoginError};
use crate::config::{self, Fault};
use crate::inventory::ovs_agent;

/// How long the start waits for the manager.
const PROOF: Duration = Duration::from_secs(5);

impl App {
    /// A token for the user, who was seen at `address`, if the manager takes the credentials as good. The guard that
    /// `on_turn` makes is held while the manager is asked.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn login<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        address: Option<IpAddr>,
        request_id: Option<Arc<str>>,
        on_turn: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        let user = credentials.username.clone();
        let outcome = self.token_for(credentials, on_turn).await;
        self.audit_log_in(&user, address, request_id, &outcome);
        outcome
    }

    /// Asks the manager whether it lets in anybody, in which case its word on a password is worth nothing. One that
    /// cannot be asked now is asked again before the first log-in is believed.
    ///
    /// # Errors
    /// Where it does.
    pub(crate) async fn prove_manager(self: &Arc<Self>) -> anyhow::Result<()> {
        let address = match self.blocking(|app| Ok(app.manager_address.now())).await? {
            Ok(address) => address,
            Err(_) => return Ok(()), // the start has told it
        };
        match tokio::time::timeout(PROOF, self.manager.reach(&address)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ LoginError::LetsAnybodyIn(_))) => Err(start_faults::manager(&error).into()),
            Ok(Err(error)) => {
                let Fault { key, found, remedy, .. } = start_faults::manager(&error);
                tracing::warn!(key, remedy, "nobody can log in for now: {found}");
                Ok(())
            }
            Err(_) => {
                tracing::warn!(manager = address, "nobody can log in for now: the manager does not answer");
                Ok(())
            }
        }
    }

    async fn token_for<G: Send>(
        self: &Arc<Self>,
        credentials: Credentials,
        on_turn: impl FnOnce() -> G + Send,
    ) -> Result<String, Error> {
        let login_slot = self.manager.login_slot().await?;
        let _asking = on_turn();
        let address = self.blocking(|app| app.manager_address.now().map_err(Error::ManagerUnavailable)).await?;
        let user = &credentials.username;
        match self.manager.verify(&login_slot, &address, &credentials).await {
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

/// Where the manager is.
pub(crate) enum ManagerAddress {
    /// Where the config says.
    Named(String),
    /// Where ovs-agent's database in this folder says, at the time.
    AgentDb(PathBuf, FileCache<Result<String, String>>),
}

/// The port of Oracle VM Manager's REST endpoint.
const PORT: u16 = 7002;

impl ManagerAddress {
    /// The manager's address as `config` has it.
    ///
    /// # Errors
    /// Where there is none, in words for an operator.
    pub(crate) fn new(config: &config::Config) -> anyhow::Result<Self> {
        let address = match (&config.manager.endpoint, &config.repositories.agent_db) {
            (Some(endpoint), _) => Self::Named(endpoint.clone()),
            (None, Some(folder)) => Self::AgentDb(folder.clone(), FileCache::new()),
            (None, None) => anyhow::bail!("ovm_endpoint: is empty; name the manager"),
        };
        let found = address.now().map_err(|problem| anyhow::anyhow!("ovm_endpoint: is empty, and {problem}"))?;
        tracing::info!(manager = found, "users are known to");
        Ok(address)
    }

    /// Where it is now.
    ///
    /// # Errors
    /// Why nobody knows, in words for an operator.
    pub(crate) fn now(&self) -> Result<String, String> {
        match self {
            Self::Named(endpoint) => Ok(endpoint.clone()),
            Self::AgentDb(folder, remembered) => remembered.get(&folder.join(ovs_agent::SERVER), |last| {
                let address = address_from(folder, last.is_none());
                let is_good = address.is_ok();
                (address, is_good)
            }),
        }
    }
}

fn address_from(folder: &Path, may_come: bool) -> Result<String, String> {
    match ovs_agent::manager_address(folder, may_come) {
        Ok(Some(host)) if host.contains(':') => Ok(format!("https://[{host}]:{PORT}")),
        Ok(Some(host)) => Ok(format!("https://{host}:{PORT}")),
        Ok(None) => {
            let file = folder.join(ovs_agent::SERVER);
            Err(format!("{} names no manager; is this server owned by one?", file.display()))
        }
        Err(error) => Err(error.to_string()),
    }
}
