//! The seam between logging in and whoever knows the users.

use std::io;

use secrecy::SecretString;
use tokio::sync::SemaphorePermit;

use super::manager::Manager;
use super::session::Identity;
use crate::config;

/// What a user logs in with. The password is never printed.
#[derive(Debug)]
pub struct Credentials {
    pub username: String,
    pub password: SecretString,
}

/// Why a log-in failed. An outage is never reported as a wrong password.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("the manager refuses this user name or password")]
    Refused,
    /// It does not answer.
    #[error("the manager cannot be asked: {0}")]
    Unavailable(String),
    /// Its answer is neither yes nor no.
    #[error("the manager cannot be asked: {0}")]
    Unclear(String),
    #[error("too many log-ins at once")]
    Busy,
    /// It accepts any password, so its answers prove nothing.
    #[error("{0} lets in who gives no password at all")]
    LetsAnybodyIn(String),
}

/// Permission to ask, which is limited to a few log-ins at a time. Dropping it lets the next one ask.
#[derive(Debug)]
pub struct LoginSlot<'a> {
    pub(super) _asking: SemaphorePermit<'a>,
    pub(super) _place: SemaphorePermit<'a>,
}

/// Checks credentials. Another user directory is a variant here and a module beside `manager`.
pub enum Authenticator {
    /// Oracle VM Manager, through its REST endpoint.
    Manager(Manager),
}

impl Authenticator {
    /// The authenticator that the config names.
    ///
    /// # Errors
    /// The certificates to verify it with cannot be read.
    pub fn new(config: &config::Manager) -> io::Result<Self> {
        Manager::new(config).map(Self::Manager)
    }

    /// Waits until credentials may be checked.
    ///
    /// # Errors
    /// [`LoginError::Busy`]: at once if too many log-ins are waiting, otherwise after a timeout.
    pub async fn login_slot(&self) -> Result<LoginSlot<'_>, LoginError> {
        match self {
            Self::Manager(manager) => manager.login_slot().await,
        }
    }

    /// Asks the server at `endpoint`, such as `https://manager.example:7002`, whether `credentials` are valid.
    ///
    /// # Errors
    /// [`LoginError`]
    pub async fn verify(
        &self,
        slot: &LoginSlot<'_>,
        endpoint: &str,
        credentials: &Credentials,
    ) -> Result<Identity, LoginError> {
        match self {
            Self::Manager(manager) => manager.verify(slot, endpoint, credentials).await,
        }
    }

    /// Checks that the server at `endpoint` answers and refuses a request without credentials.
    ///
    /// # Errors
    /// [`LoginError::LetsAnybodyIn`], [`LoginError::Unavailable`] or [`LoginError::Unclear`].
    pub async fn reach(&self, endpoint: &str) -> Result<(), LoginError> {
        match self {
            Self::Manager(manager) => manager.reach(endpoint).await,
        }
    }
}
