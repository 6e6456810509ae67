//! `[jwt]`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::secret::{is_given_away, weakness};
use super::{Check, file};

/// `[jwt]`: how tokens are made.
#[derive(Debug)]
pub struct Jwt {
    /// `secret`, the key of HMAC-SHA-256, where one is given. Never printed.
    pub secret: Option<SecretString>,
    /// `time_to_live`.
    pub time_to_live: Duration,
}

impl Check {
    pub(super) fn jwt(&mut self, jwt: &file::Jwt, sync: &SecretString) -> Jwt {
        if ["…", "..."].contains(&sync.expose_secret().trim()) {
            let remedy = "make one with: openssl rand -hex 32";
            self.problem("hooks.sync.secret", format_args!("is the placeholder of the documents; {remedy}"));
        }
        let secret = Some(jwt.secret.clone()).filter(|secret| !secret.expose_secret().is_empty());
        if let Some(secret) = &secret {
            let remedy = "leave it empty, and the service makes one, or make one with: openssl rand -hex 32";
            if let Some(why) = weakness(secret) {
                self.problem("jwt.secret", format_args!("{why}; {remedy}"));
            }
            if is_given_away(secret, sync) {
                let why = "is hooks.sync.secret, which guests are sent: they could log in as anybody";
                self.problem("jwt.secret", format_args!("{why}; {remedy}"));
            }
        }
        Jwt { secret, time_to_live: self.duration("jwt.time_to_live", &jwt.time_to_live) }
    }
}
