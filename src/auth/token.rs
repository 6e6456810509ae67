//! JSON Web Tokens (RFC 7519), signed with HMAC-SHA-256.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// The claim `iss` of our tokens.
const ISSUER: &str = "coriolis-ovm-exporter";

/// A token that is missing, malformed, expired, forged, or of another kind. Which of these it was
/// is nobody's business.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the token is missing, expired or not valid; log in for a new one")]
pub struct BadToken;

#[derive(Serialize, Deserialize)]
struct Claims {
    user: String,
    /// Seconds since 1970.
    exp: u64,
    iss: String,
}

/// A user whose token was good. There is no other way to make one.
#[derive(Clone, Debug)]
pub struct Session {
    user: String,
    address: Option<IpAddr>,
}

impl Session {
    /// The user's name, as the manager knows it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The address that the user was seen at, where there is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The session of a user who was seen at `address`.
    pub fn seen_at(self, address: Option<IpAddr>) -> Self {
        Self { address, ..self }
    }
}

/// Makes and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    time_to_live: Duration,
}

impl Tokens {
    /// Tokens signed with `secret`, good for `time_to_live`.
    pub fn new(secret: &SecretString, time_to_live: Duration) -> Self {
        let secret = secret.expose_secret().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.leeway = 0;
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
            time_to_live,
        }
    }

    /// A token for `user`, whose password the manager has taken as good at `now`.
    ///
    /// # Errors
    /// Those of signing, which has no reason to fail.
    pub fn issue(&self, user: &str, now: SystemTime) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let exp = now.saturating_add(self.time_to_live).as_secs();
        let claims = Claims { user: user.to_owned(), exp, iss: ISSUER.to_owned() };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    /// The session of whoever sent `token`.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str) -> Result<Session, BadToken> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation);
        decoded.map(|token| Session { user: token.claims.user, address: None }).map_err(|_| BadToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn tokens(secret: &str) -> Tokens {
        Tokens::new(&SecretString::from(secret), HOUR)
    }

    #[test]
    fn a_token_is_good_until_it_expires() {
        let tokens = tokens("0123456789abcdef0123456789abcdef");
        let now = SystemTime::now();
        assert_eq!(tokens.check(&tokens.issue("admin", now).unwrap()).unwrap().user(), "admin");
        let old = tokens.issue("admin", now - HOUR - Duration::from_secs(2)).unwrap();
        assert!(tokens.check(&old).is_err());
    }

    #[test]
    fn what_we_did_not_sign_is_refused() {
        let ours = tokens("0123456789abcdef0123456789abcdef");
        let theirs = tokens("fedcba9876543210fedcba9876543210");
        let good = ours.issue("admin", SystemTime::now()).unwrap();
        let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
        // {"alg":"none","typ":"JWT"}
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        let other_issuer = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &Claims { user: "admin".into(), exp: u64::MAX / 4, iss: "somebody".into() },
            &ours.encoding,
        );
        let other_algorithm = jsonwebtoken::encode(
            &Header::new(Algorithm::HS512),
            &Claims { user: "admin".into(), exp: u64::MAX / 4, iss: ISSUER.into() },
            &ours.encoding,
        );
        for forged in [
            String::new(),
            "x".to_owned(),
            theirs.issue("admin", SystemTime::now()).unwrap(),
            format!("{none}.{claims}."),
            format!("{none}.{claims}.{signature}"),
            format!("{header}.{claims}."),
            format!("{header}.{claims}.{}", signature.chars().rev().collect::<String>()),
            other_issuer.unwrap(),
            other_algorithm.unwrap(),
        ] {
            assert!(ours.check(&forged).is_err(), "{forged}");
        }
    }
}
