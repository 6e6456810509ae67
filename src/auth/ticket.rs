//! The secrets of tickets. A URL with a secret is all that is needed to read a disk, so no log may contain one.

use std::io;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};

use crate::model::hex;

/// Random bytes in a secret.
const LENGTH: usize = 32;

/// Characters of a secret.
const CHARACTERS: usize = 43;

/// Bytes of the hash that are the id.
const ID_LENGTH: usize = 8;

/// The secret of a new ticket. It is never printed.
#[derive(Debug)]
pub struct TicketSecret(SecretString);

impl TicketSecret {
    /// # Errors
    /// The system has no random numbers.
    pub fn make() -> io::Result<Self> {
        let mut bytes = [0; LENGTH];
        aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(BASE64_URL_SAFE_NO_PAD.encode(bytes).into()))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    pub fn hash(&self) -> TicketHash {
        TicketHash::of(self.expose())
    }
}

/// The SHA-256 of a secret. It identifies the ticket without permitting its use: a secret has 256 random bits, so it
/// cannot be found from its hash. Tickets are looked up by it, and so the time of a look-up tells nothing about secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketHash(pub [u8; 32]);

impl TicketHash {
    pub fn of(secret: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
        Self(hash)
    }

    /// The id of the ticket, for users, the log and the audit.
    pub fn id(self) -> String {
        hex(&self.0[..ID_LENGTH])
    }

    /// The first bytes of the hash of the ticket with this id.
    pub fn first_bytes(id: &str) -> Option<[u8; ID_LENGTH]> {
        Some(u64::from_str_radix(id, 16).ok()?.to_be_bytes())
    }
}

/// The path with each part that may be a secret replaced by the id of its ticket, wherever a client has put it: all that
/// follows a segment `t`, because a URL may be cut off, and long words elsewhere.
pub fn without_ticket_secrets(path: &str) -> String {
    let (mut shown, mut follows_t) = (String::with_capacity(path.len()), false);
    for (number, segment) in path.split('/').enumerate() {
        if number > 0 {
            shown.push('/');
        }
        match segment {
            "" => continue,
            secret if follows_t => replace(&mut shown, secret),
            other => without_long_words(&mut shown, other),
        }
        follows_t = matches!(segment, "t" | "T" | "%74" | "%54");
    }
    shown
}

fn replace(shown: &mut String, secret: &str) {
    shown.push('~');
    shown.push_str(&TicketHash::of(secret).id());
}

fn without_long_words(shown: &mut String, text: &str) {
    let is_of_secret = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '%');
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_of_secret(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.len() < CHARACTERS {
            shown.push_str(word);
        } else {
            replace(shown, word);
        }
        let end = after.find(is_of_secret).unwrap_or(after.len());
        let (between, after) = after.split_at(end);
        shown.push_str(between);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_random_and_never_printed() {
        let (one, other) = (TicketSecret::make().unwrap(), TicketSecret::make().unwrap());
        assert_eq!((one.expose().len(), one.hash().id().len()), (CHARACTERS, 16));
        assert!(one.hash() != other.hash() && one.expose() != other.expose());
        assert_eq!(TicketHash::first_bytes(&one.hash().id()), Some(one.hash().0[..ID_LENGTH].try_into().unwrap()));
        assert!(!format!("{one:?}").contains(one.expose()));
        assert!(!one.expose().contains(&one.hash().id()));
    }

    #[test]
    fn no_path_shows_a_secret() {
        let secret = TicketSecret::make().unwrap();
        let (text, id) = (secret.expose(), secret.hash().id());
        for (path, expected) in [
            (format!("/t/{text}/a.img"), format!("/t/~{id}/a.img")),
            (format!("//t/{text}"), format!("//t/~{id}")),
            (format!("/api/v1/{text}.img/x"), format!("/api/v1/~{id}.img/x")),
            (text.to_owned(), format!("~{id}")),
        ] {
            assert_eq!(without_ticket_secrets(&path), expected);
        }
        // A part of a secret leaves little to guess.
        let part = &text[..CHARACTERS - 1];
        for before in ["/t/", "/T/", "//t//", "/%74/", "/%54/", "/api/v1/t/", "/proxy/t/"] {
            for (after, others) in [("", ""), ("/a.img", "/a.img"), (".img/x", "/x"), ("%", ""), (" x/y", "/y")] {
                let shown = without_ticket_secrets(&format!("{before}{part}{after}"));
                let begins = shown.strip_prefix(&format!("{before}~"));
                assert!(begins.is_some_and(|it| it.len() == 16 + others.len() && it.ends_with(others)), "{shown}");
            }
        }
        for path in [format!("/%74/%{:02x}{}", text.as_bytes()[0], &text[1..]), format!("/t/{text}{text}/ö")] {
            assert!(!without_ticket_secrets(&path).contains(&text[1..]), "{path}");
        }
        for plain in [
            "",
            "/",
            "/api/v1/vms/0004fb00000600000000000000000001/snapshots",
            "/ö/a b/",
            "/readyz",
            "/t",
            "/t/",
            "//t//",
        ] {
            assert_eq!(without_ticket_secrets(plain), plain);
        }
        let snapshot = "/api/v1/vms/x/snapshots/6f9c7a34-0d0e-4a86-9a59-0c6c4e9f4f6e/disks/a.img/chunks";
        assert_eq!(without_ticket_secrets(snapshot), snapshot);
    }
}
