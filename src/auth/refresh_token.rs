//! Refresh tokens: random numbers that are good for one use each. The service keeps only hashes of them.
//!
//! A refresh token consists of a part that all of a log-in have, and one of its own. Only who has or had a refresh token
//! of a log-in knows the first part, so a wrong second part is a token that was used before.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};

/// Bytes of the part that all refresh tokens of a log-in have.
const FAMILY: usize = 16;

/// Bytes of the part that each has alone.
const OWN: usize = 32;

/// Never printed.
#[derive(Debug)]
pub struct RefreshToken(SecretString);

impl RefreshToken {
    /// The first of a log-in.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn first() -> Result<Self, RandomError> {
        Ok(Self::of_parts(random::<FAMILY>()?, random()?))
    }

    /// Another of the same log-in.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn next(&self) -> Result<Self, RandomError> {
        let mut family = [0; FAMILY];
        family.copy_from_slice(&self.bytes()[..FAMILY]);
        Ok(Self::of_parts(family, random()?))
    }

    /// `None` if the text is not one.
    pub fn parse(text: &SecretString) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.expose_secret()).ok()?;
        (bytes.len() == FAMILY + OWN).then(|| Self(text.clone()))
    }

    fn of_parts(family: [u8; FAMILY], own: [u8; OWN]) -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode([&family[..], &own].concat()).into())
    }

    fn bytes(&self) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(self.0.expose_secret()).unwrap_or_default()
    }

    /// The id of its log-in, from which no part of the token can be found out.
    pub fn log_in(&self) -> u128 {
        first_bytes(&hash(&self.bytes()[..FAMILY]))
    }

    /// What the service keeps of it.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.bytes())
    }

    pub fn text(&self) -> &SecretString {
        &self.0
    }
}

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system has no random numbers")]
pub struct RandomError;

pub(super) fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes)
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

pub(super) fn first_bytes(hash: &[u8; 32]) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_tokens_of_a_log_in_share_its_id_and_nothing_else() {
        let first = RefreshToken::first().unwrap();
        let (next, other) = (first.next().unwrap(), RefreshToken::first().unwrap());
        assert_eq!(first.log_in(), next.log_in());
        assert_ne!(first.log_in(), other.log_in());
        assert_ne!(first.hash(), next.hash());
        let parsed = RefreshToken::parse(first.text()).unwrap();
        assert_eq!((parsed.log_in(), parsed.hash()), (first.log_in(), first.hash()));
        assert!(!format!("{first:?}").contains(first.text().expose_secret()));
    }

    #[test]
    fn malformed_refresh_tokens_are_none() {
        let good = RefreshToken::first().unwrap().text().expose_secret().to_owned();
        for text in ["", "x", &good[1..], &format!("{good}A"), &format!("{good}="), &"é".repeat(32), &good.repeat(9)] {
            assert!(RefreshToken::parse(&text.into()).is_none(), "{text}");
        }
    }
}
