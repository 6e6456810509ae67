//! The seam for other user directories than Oracle VM Manager.

use std::io;

use super::login::{Credentials, LoginError};
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

    /// Asks the server at `endpoint`, such as `https://manager.example:7002`, whether `credentials` are valid.
    pub async fn verify(&self, endpoint: &str, credentials: &Credentials) -> Result<Identity, LoginError> {
        match self {
            Self::Manager(manager) => manager.verify(endpoint, credentials).await,
        }
    }

    /// Checks that the server at `endpoint` answers and refuses a request without credentials.
    ///
    /// # Errors
    /// [`LoginError::NoPasswordRequired`], [`LoginError::Unavailable`] or [`LoginError::Unclear`].
    pub async fn reach(&self, endpoint: &str) -> Result<(), LoginError> {
        match self {
            Self::Manager(manager) => manager.reach(endpoint).await,
        }
    }
}
