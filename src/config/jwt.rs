//! `[jwt]`: tokens.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::secret::{expose, is_given_away, weakness};
use super::validator::Validator;

#[derive(Debug)]
pub struct Jwt {
    /// The key of HMAC-SHA-256, if the config has one. Never printed.
    pub secret: Option<SecretString>,
    pub time_to_live: Duration,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    #[serde(serialize_with = "expose")]
    secret: SecretString,
    time_to_live: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self { secret: SecretString::default(), time_to_live: "168h".to_owned() }
    }
}

impl Validator {
    /// `sync` is the secret of `[hooks.sync]`.
    pub(super) fn jwt(&mut self, keys: &Keys, sync: &SecretString) -> Jwt {
        if ["…", "..."].contains(&sync.expose_secret().trim()) {
            let remedy = "make one with: openssl rand -hex 32";
            self.problem("hooks.sync.secret", format_args!("is the placeholder from the documentation; {remedy}"));
        }
        let secret = Some(keys.secret.clone()).filter(|secret| !secret.expose_secret().is_empty());
        if let Some(secret) = &secret {
            let remedy = "leave it empty and the service makes one, or make one with: openssl rand -hex 32";
            if let Some(why) = weakness(secret) {
                self.problem("jwt.secret", format_args!("{why}; {remedy}"));
            }
            if is_given_away(secret, sync) {
                let why = "is the same as hooks.sync.secret, which is sent to guests: a guest could log in as any user";
                self.problem("jwt.secret", format_args!("{why}; {remedy}"));
            }
        }
        Jwt { secret, time_to_live: self.duration("jwt.time_to_live", &keys.time_to_live) }
    }
}
