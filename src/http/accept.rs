//! What the header `Accept` asks for.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT;
use axum::http::request::Parts;

/// Whether `Accept` contains this media type itself, not only a pattern such as `*/*`.
pub(super) fn accepts(parts: &Parts, media_type: &str) -> bool {
    let accept = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut named = accept.flat_map(|value| value.split(',')).map(|kind| kind.split(';').next().unwrap_or_default());
    named.any(|kind| kind.trim().eq_ignore_ascii_case(media_type))
}

/// Whether the client accepts text but not JSON.
pub(super) struct AcceptsText(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for AcceptsText {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accepts(parts, "text/plain") && !accepts(parts, "application/json")))
    }
}

/// Whether the client is a browser that accepts HTML.
pub(super) struct WantsPage(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for WantsPage {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accepts(parts, "text/html")))
    }
}
