//! What identifies a request in the log.

use std::sync::Arc;

use axum::http::Uri;

use crate::auth::without_ticket_secrets;

/// The response header with the id of the request.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// The id of a request, in its extensions.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub Arc<str>);

/// In characters.
const MAX_LOGGED_PATH: usize = 300;

/// The path for the log, without secrets of tickets. The query is left out, because it may contain a token by mistake.
pub(super) fn logged_path(uri: &Uri) -> String {
    without_ticket_secrets(uri.path()).chars().take(MAX_LOGGED_PATH).collect()
}
