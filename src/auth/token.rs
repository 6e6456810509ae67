//! JSON Web Tokens (RFC 7519), signed with HMAC-SHA-256.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::refresh_token::{RandomError, first_bytes, hash, random};
use super::session::{Identity, Proof, Session};
use super::signing_keys::SigningKeys;
use crate::model::{AccessRules, hex};

/// The claim `iss`.
const ISSUER: &str = "coriolis-ovm-exporter";

/// The token is missing, malformed, expired, not yet valid, forged, or of another kind. Which of these is not
/// disclosed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the token is missing, expired or invalid; log in for a new one")]
pub struct BadToken;

#[derive(Serialize, Deserialize)]
struct Claims {
    user: String,
    /// Seconds since 1970.
    exp: u64,
    iss: String,
    /// Seconds since 1970, with milliseconds. Tokens of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<f64>,
    /// The id of the log-in that the token belongs to, 32 hexadecimal digits. Tokens of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    /// Not in tokens of this service.
    #[serde(default, skip_serializing)]
    nbf: Option<serde_json::Value>,
}

/// What a new token says.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    pub user: &'a str,
    /// The id of the log-in.
    pub log_in: u128,
    /// Milliseconds since 1970.
    pub issued_ms: u64,
    /// Seconds since 1970.
    pub expires: u64,
}

/// A token that was checked. Whether it was revoked since is not known here.
#[derive(Debug)]
pub struct CheckedToken {
    token: SecretString,
    /// Seconds since 1970.
    expires: u64,
    /// Milliseconds since 1970; 0 if it does not say when.
    issued_ms: u64,
    log_in: u128,
    identity: Arc<Identity>,
    can_be_kept: bool,
}

impl CheckedToken {
    /// Whether `token` is this one and has not expired.
    pub fn is(&self, token: &str, now: SystemTime) -> bool {
        // Another client of a proxy's connection must not learn the token from the time that a comparison takes.
        let is_same = verify_slices_are_equal(token.as_bytes(), self.token.expose_secret().as_bytes()).is_ok();
        is_same && now.duration_since(UNIX_EPOCH).is_ok_and(|now| now.as_secs() < self.expires)
    }

    /// Its session, with the grants of the current `rules`.
    pub fn session(&self, rules: &AccessRules) -> Session {
        let proof = Proof { made_ms: self.issued_ms, log_in: Some(self.log_in) };
        Session::new(Arc::clone(&self.identity), rules).with_proof(proof)
    }

    /// Whether it stays valid until it expires, if the keys stay and it is not revoked.
    pub fn can_be_kept(&self) -> bool {
        self.can_be_kept
    }

    pub fn user(&self) -> &str {
        &self.identity.subject
    }

    /// The id of its log-in. A token that names none is a log-in of its own.
    pub fn log_in(&self) -> u128 {
        self.log_in
    }

    /// Milliseconds since 1970. 0, which is before each revocation, if it does not say when.
    pub fn issued_ms(&self) -> u64 {
        self.issued_ms
    }

    /// Seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }
}

/// Makes and checks tokens.
pub struct Tokens {
    keys: SigningKeys,
    validation: Validation,
    time_to_live: Duration,
    accounts: hmac::Key,
}

/// The context for the key that hashes account names.
const ACCOUNT_CONTEXT: &[u8] = b"coriolis-ovm-exporter: names of accounts in the audit trail";

impl Tokens {
    /// Tokens signed with `secret` and valid for `time_to_live`.
    pub fn new(secret: &SecretString, time_to_live: Duration) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let bytes = secret.expose_secret().as_bytes();
        let accounts = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), ACCOUNT_CONTEXT);
        Self {
            keys: SigningKeys::new(secret.clone()),
            validation,
            time_to_live,
            accounts: hmac::Key::new(hmac::HMAC_SHA256, accounts.as_ref()),
        }
    }

    /// The keys, which may be replaced.
    pub fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    pub fn time_to_live(&self) -> Duration {
        self.time_to_live
    }

    /// A stable hash of an account's name that needs the secret. It shows that two log-ins used the same name without
    /// disclosing it: it may be a password in the wrong field. A replaced key changes it at the next start.
    pub fn account_hash(&self, user: &str) -> String {
        hex(&hmac::sign(&self.accounts, user.as_bytes()).as_ref()[..16])
    }

    /// A token for `user`, who logged in at `now`.
    ///
    /// # Errors
    /// Signing fails, which is not expected.
    pub fn issue(&self, user: &str, now: SystemTime) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = now.saturating_add(self.time_to_live).as_secs();
        let issued_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let log_in = new_log_in().map_err(|_| jsonwebtoken::errors::ErrorKind::InvalidKeyFormat)?;
        self.sign(&NewToken { user, log_in, issued_ms, expires })
    }

    /// # Errors
    /// Signing fails, which is not expected.
    pub fn sign(&self, new: &NewToken<'_>) -> Result<String, jsonwebtoken::errors::Error> {
        let &NewToken { user, log_in, issued_ms, expires } = new;
        let iat = Some(issued_ms as f64 / 1000.0);
        let sid = Some(hex(&log_in.to_be_bytes()));
        let claims = Claims { user: user.to_owned(), exp: expires, iss: ISSUER.to_owned(), iat, sid, nbf: None };
        self.keys.sign(&Header::new(Algorithm::HS256), &claims)
    }

    /// Checks a token. It names only the user; what the user may do is in the access rules.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str) -> Result<CheckedToken, BadToken> {
        let (claims, is_current_key) = self.keys.decode::<Claims>(token, &self.validation).ok_or(BadToken)?;
        if has_critical_extensions(token) {
            return Err(BadToken);
        }
        let Claims { user, exp: expires, nbf, iat, sid, .. } = claims;
        let log_in = sid.and_then(|sid| u128::from_str_radix(&sid, 16).ok());
        // The signature is not part of it, because several texts could stand for the same bytes.
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        Ok(CheckedToken {
            token: token.into(),
            expires,
            // A float is converted to the nearest number that fits.
            issued_ms: iat.map_or(0, |iat| (iat * 1000.0).round() as u64),
            log_in: log_in.unwrap_or_else(|| first_bytes(&hash(signed.as_bytes()))),
            identity: Arc::new(Identity::of_user(user)),
            // If the clock is set back, a token may not be valid yet. A former key is good for a limited time.
            can_be_kept: nbf.is_none() && is_current_key,
        })
    }
}

/// The id of a log-in.
///
/// # Errors
/// The system has no random numbers.
pub fn new_log_in() -> Result<u128, RandomError> {
    Ok(u128::from_be_bytes(random()?))
}

/// Whether the header of a token has `crit`. RFC 7515 (4.1.11) requires that tokens with unknown critical extensions
/// are refused, and we know none. The library ignores `"crit": null`, so the header is checked here.
fn has_critical_extensions(token: &str) -> bool {
    let header = token.split('.').next().unwrap_or_default();
    let header = BASE64_URL_SAFE_NO_PAD.decode(header).ok();
    let header = header.and_then(|text| serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(&text).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

#[cfg(test)]
#[path = "token/tests.rs"]
mod tests;
