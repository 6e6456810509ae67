//! `[jwt]`: tokens.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::secret::{is_given_away, mask, weakness};
use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Jwt {
    /// The key of HMAC-SHA-256, if the config has one. Never printed.
    pub secret: Option<SecretString>,
    /// How long tokens of a replaced key stay good.
    pub secret_overlap: Duration,
    /// How long a log-in lasts: a token that cannot be renewed, and all renewals together.
    pub time_to_live: Duration,
    /// How long a token is good that can be renewed.
    pub access_time_to_live: Duration,
    /// Whether log-ins that do not ask for a refresh token get a token for `time_to_live`.
    pub long_tokens: bool,
    /// After this time the manager is asked again.
    pub recheck_after: Option<Duration>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    #[serde(serialize_with = "mask")]
    secret: SecretString,
    secret_overlap: String,
    time_to_live: String,
    access_time_to_live: String,
    long_tokens: bool,
    recheck_after: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            secret: SecretString::default(),
            secret_overlap: "0".to_owned(),
            time_to_live: "168h".to_owned(),
            access_time_to_live: "1h".to_owned(),
            long_tokens: true,
            recheck_after: String::new(),
        }
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
        let time_to_live = self.duration("jwt.time_to_live", &keys.time_to_live);
        Jwt {
            secret,
            secret_overlap: match keys.secret_overlap.as_str() {
                "0" | "0s" => Duration::ZERO,
                text => self.duration("jwt.secret_overlap", text),
            },
            time_to_live,
            access_time_to_live: self.duration("jwt.access_time_to_live", &keys.access_time_to_live).min(time_to_live),
            long_tokens: keys.long_tokens,
            recheck_after: optional(&keys.recheck_after).map(|text| self.duration("jwt.recheck_after", text)),
        }
    }
}
