//! What makes a secret one that can be guessed.

use std::collections::BTreeSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

/// Secrets that stand in public documents, as SHA-256: whoever reads those could make tokens.
const PUBLISHED: &[&str] = &["4d52bc2f2a1489b6bcde025a04a7c18c92c8cb6e280b309e10b473fff431ea15"];

/// What RFC 7518, 3.2 asks of an HS256 key, bytes.
const SHORTEST: usize = 32;

/// With fewer bytes that differ, a secret was not made at random.
const DISTINCT: usize = 8;

/// The longest piece of which a secret may not be made up by repetition, bytes.
const PERIOD: usize = 12;

/// Why a key of tokens can be guessed, where it can.
pub fn weakness(secret: &SecretString) -> Option<String> {
    let secret = secret.expose_secret().trim().as_bytes();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret);
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let repeats = |period: usize| secret[period..] == secret[..secret.len() - period];
    if secret.len() < SHORTEST {
        Some(format!("is shorter than {SHORTEST} bytes"))
    } else if PUBLISHED.contains(&digest.as_str()) {
        Some("is a published sample, with which anybody can log in".to_owned())
    } else if secret.iter().collect::<BTreeSet<_>>().len() < DISTINCT {
        Some(format!("has fewer than {DISTINCT} different characters, and can be guessed"))
    } else if (1..=PERIOD).any(repeats) {
        Some("repeats a few characters, and can be guessed".to_owned())
    } else {
        None
    }
}

/// Whether whoever knows `sent`, the secret of `[hooks.sync]`, knows `key` too: the guests are sent `sent`.
pub fn is_given_away(key: &SecretString, sent: &SecretString) -> bool {
    let (key, sent) = (key.expose_secret().trim(), sent.expose_secret());
    // It is sent as base64.
    !sent.is_empty() && [sent, sent.trim()].iter().any(|sent| key == *sent || key == BASE64_STANDARD.encode(sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_can_be_guessed_are_known() {
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
    fn a_key_that_guests_are_sent_is_known() {
        let key = SecretString::from("0123456789abcdef0123456789abcdef");
        let given = |sent: &str| is_given_away(&key, &sent.into());
        assert!(given("0123456789abcdef0123456789abcdef") && given(" 0123456789abcdef0123456789abcdef\n"));
        assert!(!given("") && !given("hush"));
        assert!(is_given_away(&"aHVzaA==".into(), &"hush".into()));
    }
}
