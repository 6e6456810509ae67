//! Which secrets are too weak, and how they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;

use crate::model::hex;

/// The SHA-256 of secrets in public documents. Any reader of those could make tokens.
const PUBLISHED: &[&str] = &["4d52bc2f2a1489b6bcde025a04a7c18c92c8cb6e280b309e10b473fff431ea15"];

/// The length in bytes that RFC 7518, 3.2 requires of an HS256 key.
const MIN_LENGTH: usize = 32;

/// A random secret has at least this many different bytes.
const MIN_DISTINCT: usize = 8;

/// A secret must not be the repetition of this many bytes or fewer.
const MAX_PERIOD: usize = 12;

/// Why the key of tokens is too weak, if it is.
pub fn weakness(secret: &SecretString) -> Option<String> {
    let secret = secret.expose_secret().trim().as_bytes();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret);
    let digest = hex(digest.as_ref());
    let repeats = |period: usize| secret[period..] == secret[..secret.len() - period];
    if secret.len() < MIN_LENGTH {
        Some(format!("is shorter than {MIN_LENGTH} bytes"))
    } else if PUBLISHED.contains(&digest.as_str()) {
        Some("is a published sample, with which anyone can log in".to_owned())
    } else if secret.iter().collect::<BTreeSet<_>>().len() < MIN_DISTINCT {
        Some(format!("has fewer than {MIN_DISTINCT} different characters, and can be guessed"))
    } else if (1..=MAX_PERIOD).any(repeats) {
        Some("repeats a few characters, and can be guessed".to_owned())
    } else {
        None
    }
}

/// Whether guests learn the key of tokens, because it is also `sent`, the secret of `[hooks.sync]`.
pub fn is_given_away(key: &SecretString, sent: &SecretString) -> bool {
    let (key, sent) = (key.expose_secret().trim(), sent.expose_secret());
    // The guests receive it as base64.
    !sent.is_empty() && [sent, sent.trim()].iter().any(|sent| key == *sent || key == BASE64_STANDARD.encode(sent))
}

/// Serializes a secret as a text that discloses nothing, and that other secrets do not have: a hash with a random key of
/// this process. An empty secret stays empty.
pub(super) fn mask<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    match secret.expose_secret() {
        "" => serializer.serialize_str(""),
        secret => serializer.serialize_str(&format!("(not shown {:016x})", KEY.hash_one(secret))),
    }
}

/// Serializes a URL without the user and the password that it may have by mistake.
pub(super) fn mask_user<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_user(url))
}

/// As [`mask_user`], for the values of a map.
pub(super) fn mask_users<S: Serializer>(urls: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(urls.iter().map(|(key, url)| (key, without_user(url))))
}

/// The URL without the user and the password that it may have by mistake.
pub(super) fn without_user(url: &str) -> String {
    let Some((user, host)) = url.rsplit_once('@') else { return url.to_owned() };
    let scheme = user.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}(not shown)@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_recognized() {
        let weak = |text: &str| weakness(&text.into());
        for (text, expected) in [
            ("short", "shorter"),
            (&"x".repeat(64), "different"),
            (&"0".repeat(32), "different"),
            (&"ab".repeat(20), "different"),
            (&"changeme".repeat(5), "different"),
            (&"abcdefgh".repeat(4), "repeats"),
            (&"correct-12".repeat(4), "repeats"),
            (&format!("short{}", " ".repeat(60)), "shorter"),
            ("yoidthOcBauphFeykCotdidNorjAnAtGhonsabShegAtfexbavlyakPak4SletEd", "published"),
        ] {
            assert!(weak(text).is_some_and(|why| why.contains(expected)), "{text}: {:?}", weak(text));
        }
        for text in [
            "0123456789abcdef0123456789abcdef",
            "a secret of tests, never to be seen in a log",
            "5f9c2d7e8a1b4c3d6e7f8091a2b3c4d55f9c2d7e8a1b4c3d6e7f8091a2b3c4d5",
        ] {
            assert_eq!(weak(text), None, "{text}");
        }
    }

    #[test]
    fn urls_are_shown_without_their_user() {
        for (url, shown) in [
            ("https://guest:1727", "https://guest:1727"),
            ("https://root:p@ss@guest:1727/x", "https://(not shown)@guest:1727/x"),
            ("root:pass@guest", "(not shown)@guest"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }

    #[test]
    fn a_key_that_is_sent_to_guests_is_recognized() {
        let key = SecretString::from("0123456789abcdef0123456789abcdef");
        let given = |sent: &str| is_given_away(&key, &sent.into());
        assert!(given("0123456789abcdef0123456789abcdef") && given(" 0123456789abcdef0123456789abcdef\n"));
        assert!(!given("") && !given("hush"));
        assert!(is_given_away(&"aHVzaA==".into(), &"hush".into()));
    }
}
