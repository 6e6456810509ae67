//! What requests say about checksums: the query of `…/checksum`, and the digest fields (RFC 9530).

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

/// Bytes of a block of checksums: powers of two between these.
const BLOCKS: std::ops::RangeInclusive<u64> = 4 << 10..=16 << 20;

/// `algorithm`, `start`, `length`, `blockSize`, `blocks` of a query.
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
                Error::BadRequest(format!("algorithm={name:?}: there are {names}"))
            })?,
        };
        // The second is as imageio's clients write it: ignored, it would be another checksum.
        let [block, same] = ["blockSize", "block_size"].map(|name| query.given(name));
        if block.is_some() && same.is_some() {
            return Err(Error::BadRequest("blockSize is given twice, as block_size too; keep one".to_owned()).into());
        }
        let block = block.or(same);
        let block = block.map(block_size).transpose()?;
        let list = query.bool_or("blocks", false)?;
        if list && block.is_none() {
            return Err(Error::BadRequest("blocks=true wants a blockSize as well".to_owned()).into());
        }
        let start = query.number("start", u64::MAX)?.unwrap_or_default();
        let length = query.number("length", u64::MAX)?;
        Ok(Self(ChecksumRequest { algorithm, start, length, block, list }))
    }
}

fn block_size(text: &str) -> Result<NonZero<u64>, Failure> {
    let block = text.parse().ok().filter(|block: &u64| block.is_power_of_two() && BLOCKS.contains(block));
    block.and_then(NonZero::new).ok_or_else(|| {
        let (least, most) = BLOCKS.into_inner();
        Error::BadRequest(format!("blockSize={text:?}: write a power of two from {least} to {most}")).into()
    })
}

pub(super) const WANT_REPR_DIGEST: &str = "want-repr-digest";
pub(super) const WANT_CONTENT_DIGEST: &str = "want-content-digest";
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// Whether the field `name` of a request, a dictionary of algorithms and how much each is wanted from
/// 0 to 10, wants sha-256: of those that are registered and not broken the one that all have.
///
/// A wish that cannot be understood is none, as RFC 9651 has it of any structured field.
pub(super) fn wants_sha_256(headers: &HeaderMap, name: &str) -> bool {
    let members = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut wanted = false;
    for member in members {
        let Some((algorithm, wish)) = std::str::from_utf8(member).unwrap_or_default().trim().split_once('=') else {
            return false;
        };
        let wish = wish.split(';').next().unwrap_or_default();
        let Some(wish) = wish.parse::<u8>().ok().filter(|wish| *wish <= 10) else { return false };
        // The last of several counts (RFC 9651, 4.2.2).
        if algorithm == "sha-256" {
            wanted = wish > 0;
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
    fn a_digest_is_wanted_that_is_named_and_not_with_zero() {
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
    fn a_field_is_a_byte_sequence() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let mut digest = [0; 32];
        (0..32).for_each(|i| digest[i] = u8::from_str_radix(&nothing[2 * i..][..2], 16).unwrap());
        assert_eq!(field(Digest(digest)), "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
        assert_eq!(Digest(digest).to_string(), nothing);
    }
}
