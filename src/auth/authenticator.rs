//! The seam between logging in and whoever knows the users.

use std::io;

use super::login::{Credentials, LoginError, LoginSlot};
use super::manager::Manager;
use super::session::Identity;
use crate::config;

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
