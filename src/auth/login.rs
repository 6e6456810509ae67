//! What every way to log in has in common.

use secrecy::SecretString;

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
    /// The manager does not respond.
    #[error("the manager cannot be reached: {0}")]
    Unavailable(String),
    /// Its response says neither that the password is right nor that it is wrong.
    #[error("the manager gave an unexpected response: {0}")]
    Unclear(String),
    /// The manager accepts any password.
    #[error("{0} accepts requests without a password")]
    NoPasswordRequired(String),
}
