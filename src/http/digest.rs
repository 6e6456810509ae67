//! Parses the query of `…/checksum` and the digest fields (RFC 9530).

use std::num::NonZero;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::failure::Failure;
use super::query::Parameters;
use crate::app::export::ChecksumRequest;
use crate::app::{App, Error};
use crate::repository::checksum::{Algorithm, Digest};

/// The allowed block sizes in bytes. They must be powers of two.
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 4 << 10..=16 << 20;

/// The parameters `algorithm`, `start`, `length`, `blockSize` and `blocks`.
pub(super) struct ChecksumQuery(pub ChecksumRequest);

impl FromRequestParts<Arc<App>> for ChecksumQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let known = ["algorithm", "start", "length", "blockSize", "block_size", "blocks"];
        let query = Parameters::of(parts, app, &known).await?;
        let algorithm = match query.given("algorithm") {
            None => Algorithm::Blake3,
            Some(name) => Algorithm::named(name).ok_or_else(|| {
                let names = Algorithm::ALL.map(Algorithm::name).join(", ");
                Error::BadRequest(format!("algorithm={name:?} is unknown; use one of {names}"))
            })?,
        };
        // imageio's clients use the second spelling. Ignoring it would return another checksum.
        let [block, alias] = ["blockSize", "block_size"].map(|name| query.given(name));
        if block.is_some() && alias.is_some() {
            return Err(Error::BadRequest("blockSize and block_size are both given; use one of them".to_owned()).into());
        }
        let block = block.or(alias);
        let block = block.map(block_size).transpose()?;
        let list = query.bool_or("blocks", false)?;
        if list && block.is_none() {
            return Err(Error::BadRequest("blocks=true requires blockSize".to_owned()).into());
        }
        let start = query.number("start", u64::MAX)?.unwrap_or_default();
        let length = query.number("length", u64::MAX)?;
        Ok(Self(ChecksumRequest { algorithm, start, length, block, list }))
    }
}

fn block_size(text: &str) -> Result<NonZero<u64>, Failure> {
    let block = text.parse().ok().filter(|block: &u64| block.is_power_of_two() && BLOCK_SIZES.contains(block));
    block.and_then(NonZero::new).ok_or_else(|| {
        let (min, max) = BLOCK_SIZES.into_inner();
        Error::BadRequest(format!("blockSize={text:?} is invalid; expected a power of two from {min} to {max}")).into()
    })
}

pub(super) const WANT_REPR_DIGEST: &str = "want-repr-digest";
pub(super) const WANT_CONTENT_DIGEST: &str = "want-content-digest";
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// Whether the field `name` of a request asks for sha-256. The field maps algorithms to preferences from 0 to 10. Only
/// sha-256 is supported, as the secure algorithm that all clients have.
///
/// A field that cannot be parsed is ignored, as RFC 9651 requires for structured fields.
pub(super) fn wants_sha_256(headers: &HeaderMap, name: &str) -> bool {
    let members = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut wanted = false;
    for member in members {
        let Some((algorithm, preference)) = std::str::from_utf8(member).unwrap_or_default().trim().split_once('=')
        else {
            return false;
        };
        let preference = preference.split(';').next().unwrap_or_default();
        let Some(preference) = preference.parse::<u8>().ok().filter(|preference| *preference <= 10) else {
            return false;
        };
        // The last one of duplicates counts (RFC 9651, 4.2.2).
        if algorithm == "sha-256" {
            wanted = preference > 0;
        }
    }
    wanted
}

/// The value of a digest field.
pub(super) fn field(sha_256: Digest) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(sha_256.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn digest_is_wanted_if_named_with_nonzero_preference() {
        let wants = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WANT_REPR_DIGEST, HeaderValue::from_str(value).unwrap());
            }
            wants_sha_256(&headers, WANT_REPR_DIGEST)
        };
        for yes in [
            &["sha-256=10"][..],
            &["sha-256=1"],
            &["sha-512=10, sha-256=3"],
            &["sha-512=3", "sha-256=10"],
            &["sha-256=0, sha-256=1"],
            &["\tsha-256=2;x=y ,unixsum=0"],
        ] {
            assert!(wants(yes), "{yes:?}");
        }
        for no in [
            &[][..],
            &[""],
            &["sha-256=0"],
            &["sha-512=10"],
            &["sha-256"],
            &["sha-256=11"],
            &["sha-256=-1"],
            &["sha-256=1.5"],
            &["sha-256=:abc:"],
            &["SHA-256=1"],
            &["sha-256=1,,"],
            &["sha-256=1, x"],
            &["sha-256=1, sha-256=0"],
        ] {
            assert!(!wants(no), "{no:?}");
        }
    }

    #[test]
    fn digest_field_is_byte_sequence() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let mut digest = [0; 32];
        (0..32).for_each(|i| digest[i] = u8::from_str_radix(&nothing[2 * i..][..2], 16).unwrap());
        assert_eq!(field(Digest(digest)), "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
        assert_eq!(Digest(digest).to_string(), nothing);
    }
}
