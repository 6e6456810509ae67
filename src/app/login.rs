//! The journey from a user's name and password to a token.

use std::time::SystemTime;

use super::{App, Error};
use crate::auth::Credentials;

impl App {
    /// A token for the user, if the manager takes the credentials as good.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn login(&self, credentials: Credentials) -> Result<String, Error> {
        let user = &credentials.username;
        match self.manager.verify(&credentials).await {
            Ok(()) => {
                let token = self.tokens.issue(user, SystemTime::now());
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
