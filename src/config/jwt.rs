//! `[jwt]`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{Check, file};

/// `[jwt]`: how tokens are made.
#[derive(Debug)]
pub struct Jwt {
    /// `secret`, the key of HMAC-SHA-256. Never printed.
    pub secret: SecretString,
    /// `time_to_live`.
    pub time_to_live: Duration,
}

/// Secrets that stand in public documents, as SHA-256: whoever reads those could make tokens.
const PUBLISHED_SECRETS: &[&str] = &["4d52bc2f2a1489b6bcde025a04a7c18c92c8cb6e280b309e10b473fff431ea15"];

/// What RFC 7518, 3.2 asks of an HS256 key, bytes.
const SECRET_MIN: usize = 32;

impl Check {
    pub(super) fn jwt(&mut self, jwt: &file::Jwt) -> Jwt {
        let secret = jwt.secret.expose_secret();
        let digest = hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes()).as_ref());
        let make_one = "make one with: openssl rand -hex 32";
        if secret.len() < SECRET_MIN {
            self.problem("jwt.secret", format_args!("is shorter than {SECRET_MIN} bytes; {make_one}"));
        } else if PUBLISHED_SECRETS.contains(&digest.as_str()) {
            self.problem(
                "jwt.secret",
                format_args!("is a published sample, with which anybody can log in; {make_one}"),
            );
        }
        Jwt { secret: jwt.secret.clone(), time_to_live: self.duration("jwt.time_to_live", &jwt.time_to_live) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
