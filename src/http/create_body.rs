//! Parses the body and the idempotency key of a request for a new snapshot.

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;

use super::extract::SmallBody;
use super::failure::Failure;
use crate::api;
use crate::app::Error;
use crate::app::snapshots::CreateRequest;

/// From the IETF draft `idempotency-key-header`.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The body, which is optional and parsed as JSON regardless of Content-Type, and the header `Idempotency-Key`.
pub(super) struct CreateBody(pub CreateRequest);

impl<S: Send + Sync> FromRequest<S> for CreateBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let key = idempotency_key(request.headers())?;
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        // The body has no secrets, so the error may include the parser's message.
        let invalid = |problem: &dyn std::fmt::Display| {
            let keys = "it may be empty, or an object with disks, exclude_disks, ttl, labels, description and quiesce";
            Error::BadRequest(format!("invalid body: {problem}; {keys}"))
        };
        let body: api::CreateSnapshot = match bytes.trim_ascii().first() {
            // Some libraries send this instead of an empty body.
            Some(_) if bytes.trim_ascii() == b"null" => api::CreateSnapshot::default(),
            None => api::CreateSnapshot::default(),
            // The parser would accept an array as an object without names.
            Some(b'[') => return Err(invalid(&"it is an array").into()),
            Some(_) => serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?,
        };
        Ok(Self(CreateRequest::new(body, key.as_deref())?))
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => Ok(Some(String::from_utf8_lossy(key.as_bytes()).into_owned())),
        (Some(_), Some(_)) => Err(Error::BadRequest("Idempotency-Key is given twice; use it once".to_owned())),
    }
}
