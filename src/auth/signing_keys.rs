//! The keys that sign and verify tokens: the current one, and former ones for a limited time after they were replaced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Former keys that verify tokens. With another one, the oldest ends early.
const MAX_FORMER: usize = 4;

/// Former keys are kept in memory only.
pub struct SigningKeys {
    keys: RwLock<Keys>,
    /// Grows with each change.
    revision: AtomicU64,
}

struct Keys {
    current: Key,
    /// The oldest first.
    former: Vec<(Key, Instant)>,
}

struct Key {
    secret: SecretString,
    decoding: DecodingKey,
}

impl Key {
    fn new(secret: SecretString) -> Self {
        let decoding = DecodingKey::from_secret(secret.expose_secret().as_bytes());
        Self { secret, decoding }
    }

    fn is(&self, secret: &SecretString) -> bool {
        let (ours, theirs) = (self.secret.expose_secret(), secret.expose_secret());
        verify_slices_are_equal(ours.as_bytes(), theirs.as_bytes()).is_ok()
    }
}

impl SigningKeys {
    pub(super) fn new(secret: SecretString) -> Self {
        let keys = Keys { current: Key::new(secret), former: Vec::new() };
        Self { keys: RwLock::new(keys), revision: AtomicU64::new(0) }
    }

    /// Signs with `secret` from now on. Tokens that other keys have signed are good for `overlap` at most, from now on.
    /// Returns whether the key is another one.
    pub fn replace(&self, secret: SecretString, overlap: Duration) -> bool {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // An overlap beyond the range of the clock is as good as none.
        let end = now.checked_add(overlap).unwrap_or(now);
        for (_, until) in &mut keys.former {
            *until = end.min(*until);
        }
        let is_new = !keys.current.is(&secret);
        if is_new {
            let former = std::mem::replace(&mut keys.current, Key::new(secret));
            keys.former.push((former, end));
        }
        keys.former.retain(|(_, until)| *until > now);
        let too_many = keys.former.len().saturating_sub(MAX_FORMER);
        keys.former.drain(..too_many);
        self.revision.fetch_add(1, Ordering::Release);
        is_new
    }

    /// As long as it is the same, a token of the current key stays good.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn sign<T: Serialize>(
        &self,
        header: &Header,
        claims: &T,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let secret = keys.current.secret.expose_secret().as_bytes();
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret))
    }

    /// The claims of a token, and whether the current key has signed it. `None` if none of the keys has.
    pub(super) fn decode<T: DeserializeOwned>(&self, token: &str, validation: &Validation) -> Option<(T, bool)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let decode = |key: &Key| jsonwebtoken::decode::<T>(token, &key.decoding, validation).ok();
        if let Some(decoded) = decode(&keys.current) {
            return Some((decoded.claims, true));
        }
        let now = Instant::now();
        let former = keys.former.iter().filter(|(_, until)| *until > now);
        former.map(|(key, _)| key).find_map(decode).map(|decoded| (decoded.claims, false))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::auth::Tokens;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_former_key_is_good_for_the_overlap_and_does_not_sign() {
        let [first, second, third] =
            ["first", "second", "third"].map(|name| SecretString::from(format!("{name} secret")));
        let tokens = Tokens::new(&first, HOUR);
        let old = tokens.issue("admin", SystemTime::now()).unwrap();
        let revision = tokens.keys().revision();
        assert!(!tokens.keys().replace(first.clone(), HOUR), "it is the same key");
        assert!(tokens.check(&old).unwrap().can_be_kept());
        assert!(tokens.keys().replace(second.clone(), HOUR));
        assert_ne!(tokens.keys().revision(), revision);
        let new = tokens.issue("admin", SystemTime::now()).unwrap();
        assert!(Tokens::new(&second, HOUR).check(&new).is_ok() && Tokens::new(&first, HOUR).check(&new).is_err());
        assert!(tokens.check(&new).unwrap().can_be_kept());
        assert!(!tokens.check(&old).unwrap().can_be_kept(), "it would be recognized after the overlap");
        // A shorter overlap applies to earlier keys too.
        assert!(tokens.keys().replace(third, Duration::ZERO));
        assert!(tokens.check(&old).is_err() && tokens.check(&new).is_err());
        // Many keys.
        for number in 0..2 * MAX_FORMER {
            tokens.keys().replace(format!("secret {number}").into(), HOUR);
        }
        assert_eq!(tokens.keys().keys.read().unwrap().former.len(), MAX_FORMER);
    }
}
