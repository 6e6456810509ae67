//! What a request for a new snapshot says: its body and its key.

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;

use super::extract::SmallBody;
use super::failure::Failure;
use crate::api;
use crate::app::Error;
use crate::app::snapshots::CreateRequest;

/// The header of the IETF's draft `idempotency-key-header`.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The body, JSON whatever the Content-Type says, or none; and the header `Idempotency-Key`.
pub(super) struct CreateBody(pub CreateRequest);

impl<S: Send + Sync> FromRequest<S> for CreateBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let key = idempotency_key(request.headers())?;
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        // Nothing in it is a secret, so the parser may say what it has met.
        let cannot = |problem: &dyn std::fmt::Display| {
            let keys = "it may be empty, or an object with disks, exclude_disks and ttl";
            Error::BadRequest(format!("the body cannot be understood: {problem}; {keys}"))
        };
        let body: api::CreateSnapshot = match bytes.trim_ascii().first() {
            // What some libraries send for nothing.
            Some(_) if bytes.trim_ascii() == b"null" => api::CreateSnapshot::default(),
            None => api::CreateSnapshot::default(),
            // The parser takes an array for an object without names.
            Some(b'[') => return Err(cannot(&"it is an array").into()),
            Some(_) => serde_json::from_slice(&bytes).map_err(|error| cannot(&error))?,
        };
        Ok(Self(CreateRequest::new(body, key.as_deref())?))
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => Ok(Some(String::from_utf8_lossy(key.as_bytes()).into_owned())),
        (Some(_), Some(_)) => Err(Error::BadRequest("Idempotency-Key: is given twice; keep one".to_owned())),
    }
}
