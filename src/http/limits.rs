//! The limits in `GET /capabilities`.

use super::byte_range::MAX_RANGES;
use super::digest::BLOCK_SIZES;
use super::disk_response::MAX_DIGESTED;
use super::extract::BODY_LIMIT;
use super::query::MAX_PAGE;
use crate::api;
use crate::app::App;

pub(super) fn of(app: &App) -> api::Limits {
    api::Limits {
        ranges_per_request: MAX_RANGES,
        request_body_bytes: BODY_LIMIT,
        token_seconds: app.sessions.token_lifetime().as_secs(),
        content_digest_bytes: MAX_DIGESTED,
        chunks_per_page: MAX_PAGE,
        checksum_block_bytes: api::Bounds { min: *BLOCK_SIZES.start(), max: *BLOCK_SIZES.end() },
        ..app.operator.ops.limits()
    }
}
