//! JSON Web Tokens (RFC 7519), signed with HMAC-SHA-256.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::session::{Identity, Session};
use crate::model::hex;

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
    /// Not in tokens of this service.
    #[serde(default, skip_serializing)]
    nbf: Option<serde_json::Value>,
}

/// A token that was checked. It stays valid until it expires: there is no other way to end it while the service runs.
#[derive(Debug)]
pub struct CheckedToken {
    token: SecretString,
    /// Seconds since 1970.
    expires: u64,
    session: Session,
}

impl CheckedToken {
    /// The session, if `token` is this one and has not expired.
    pub fn session(&self, token: &str, now: SystemTime) -> Option<Session> {
        // Another client of a proxy's connection must not learn the token from the time that a comparison takes.
        let is_same = verify_slices_are_equal(token.as_bytes(), self.token.expose_secret().as_bytes()).is_ok();
        let seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        (is_same && seconds < self.expires).then(|| self.session.clone())
    }
}

/// Makes and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    time_to_live: Duration,
    accounts: hmac::Key,
}

/// The context for the key that hashes account names.
const ACCOUNT_CONTEXT: &[u8] = b"coriolis-ovm-exporter: names of accounts in the audit trail";

impl Tokens {
    /// Tokens signed with `secret` and valid for `time_to_live`.
    pub fn new(secret: &SecretString, time_to_live: Duration) -> Self {
        let secret = secret.expose_secret().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let accounts = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), ACCOUNT_CONTEXT);
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
            time_to_live,
            accounts: hmac::Key::new(hmac::HMAC_SHA256, accounts.as_ref()),
        }
    }

    /// A stable hash of an account's name that needs the secret. It shows that two log-ins used the same name without
    /// disclosing it: it may be a password in the wrong field.
    pub fn account_hash(&self, user: &str) -> String {
        hex(&hmac::sign(&self.accounts, user.as_bytes()).as_ref()[..16])
    }

    /// A token for `user`, who logged in at `now`.
    ///
    /// # Errors
    /// Signing fails, which is not expected.
    pub fn issue(&self, user: &str, now: SystemTime) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let exp = now.saturating_add(self.time_to_live).as_secs();
        let claims = Claims { user: user.to_owned(), exp, iss: ISSUER.to_owned(), nbf: None };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    /// The session of the user with this token, and what is needed to recognize the token, if it can be kept.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn check(&self, token: &str) -> Result<(Session, Option<CheckedToken>), BadToken> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation).map_err(|_| BadToken)?;
        if has_critical_extensions(token) {
            return Err(BadToken);
        }
        let Claims { user, exp: expires, nbf, .. } = decoded.claims;
        let session = Session::new(Identity::administrator(user));
        // If the clock is set back, a token may not be valid yet.
        let checked = CheckedToken { token: token.into(), expires, session: session.clone() };
        Ok((session, Some(checked).filter(|_| nbf.is_none())))
    }
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
        assert_eq!(tokens.check(&tokens.issue("admin", now).unwrap()).unwrap().0.subject(), "admin");
        let old = tokens.issue("admin", now - HOUR - Duration::from_secs(2)).unwrap();
        assert!(tokens.check(&old).is_err());
    }

    /// A token with these claims and this header, rightly signed.
    fn signed(tokens: &Tokens, header: &serde_json::Value, claims: &serde_json::Value) -> String {
        let part = |part: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &tokens.encoding, Algorithm::HS256);
        format!("{text}.{}", signature.unwrap())
    }

    #[test]
    fn a_checked_token_is_recognized_until_it_expires() {
        let (tokens, now) = (tokens("a secret of tests"), SystemTime::now());
        let token = tokens.issue("admin", now).unwrap();
        let checked = tokens.check(&token).unwrap().1.unwrap();
        assert_eq!(checked.session(&token, now).unwrap().subject(), "admin");
        assert!(checked.session(&token, now + HOUR - Duration::from_secs(2)).is_some());
        assert!(checked.session(&token, now + HOUR).is_none(), "it has expired");
        let other = tokens.issue("other", now).unwrap();
        for wrong in ["", &token[1..], &token[..token.len() - 1], &other] {
            assert!(checked.session(wrong, now).is_none(), "{wrong}");
        }
        assert!(!format!("{checked:?}").contains(&token), "the token is in debug output");
    }

    #[test]
    fn a_token_is_refused_before_its_time_and_with_critical_extensions() {
        use serde_json::{Value, json};
        let tokens = tokens("0123456789abcdef0123456789abcdef");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let check = |more_header: Value, more_claims: Value| {
            let mut header = json!({"alg": "HS256", "typ": "JWT"});
            header.as_object_mut().unwrap().extend(more_header.as_object().unwrap().clone());
            let mut claims = json!({"user": "admin", "exp": now + 600, "iss": ISSUER});
            claims.as_object_mut().unwrap().extend(more_claims.as_object().unwrap().clone());
            tokens.check(&signed(&tokens, &header, &claims)).is_ok()
        };
        for nbf in [json!(now), json!(now - 60), json!(0), json!(now as f64 - 0.6)] {
            assert!(check(json!({}), json!({ "nbf": nbf })), "{nbf}");
        }
        for nbf in [json!(now + 60), json!(u64::MAX), json!("now"), json!(null), json!([0])] {
            assert!(!check(json!({}), json!({ "nbf": nbf })), "{nbf}");
        }
        assert!(check(json!({"kid": "one"}), json!({})));
        for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!(null), json!("exp"), json!({})] {
            assert!(!check(json!({ "crit": crit, "b64": true }), json!({})), "{crit}");
        }
    }

    #[test]
    fn account_hashes_are_stable_and_depend_on_the_secret() {
        let hash = |secret: &str, user: &str| tokens(secret).account_hash(user);
        let (ours, theirs) = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210");
        assert_eq!(hash(ours, "admin"), hash(ours, "admin"));
        assert_ne!(hash(ours, "admin"), hash(ours, "admin "));
        assert_ne!(hash(ours, "admin"), hash(theirs, "admin"));
        assert_eq!(hash(ours, "admin").len(), 32);
    }

    #[test]
    fn forged_tokens_are_refused() {
        let ours = tokens("0123456789abcdef0123456789abcdef");
        let theirs = tokens("fedcba9876543210fedcba9876543210");
        let good = ours.issue("admin", SystemTime::now()).unwrap();
        let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
        // {"alg":"none","typ":"JWT"}
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        let other_issuer = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &Claims { user: "admin".into(), exp: u64::MAX / 4, iss: "another issuer".into(), nbf: None },
            &ours.encoding,
        );
        let other_algorithm = jsonwebtoken::encode(
            &Header::new(Algorithm::HS512),
            &Claims { user: "admin".into(), exp: u64::MAX / 4, iss: ISSUER.into(), nbf: None },
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
