//! Parses the body and the idempotency key of a request for new snapshots.

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use serde::de::DeserializeOwned;

use super::extract::{SmallBody, is_array};
use super::failure::Failure;
use crate::api;
use crate::app::Error;
use crate::app::snapshots::CreateRequest;
use crate::model::VmId;

/// From the IETF draft `idempotency-key-header`.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The body, which is optional and parsed as JSON regardless of Content-Type, and the header `Idempotency-Key`.
pub(super) struct CreateBody(pub CreateRequest);

impl<S: Send + Sync> FromRequest<S> for CreateBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let key = idempotency_key(request.headers())?;
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        let keys = "it may be empty, or an object with disks, exclude_disks, ttl, labels, description and quiesce";
        let body: api::CreateSnapshot = match bytes.trim_ascii() {
            // Some libraries send `null` instead of an empty body.
            b"" | b"null" => api::CreateSnapshot::default(),
            bytes => object(bytes, keys)?,
        };
        Ok(Self(CreateRequest::new(body, key.as_deref())?))
    }
}

/// The VMs and the request for their snapshots, as [`CreateBody`].
pub(super) struct GroupBody(pub Vec<VmId>, pub CreateRequest);

impl<S: Send + Sync> FromRequest<S> for GroupBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let key = idempotency_key(request.headers())?;
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        let keys = "expected an object with vms, and optionally ttl, labels, description and quiesce";
        let (vms, request) = CreateRequest::of_group(object(bytes.trim_ascii(), keys)?, key.as_deref())?;
        Ok(Self(vms, request))
    }
}

/// Parses an object. `keys` says what is expected. The body has no secrets, so the error may have the parser's message.
pub(super) fn object<T: DeserializeOwned>(bytes: &[u8], keys: &str) -> Result<T, Error> {
    let invalid = |problem: &dyn std::fmt::Display| Error::BadRequest(format!("invalid body: {problem}; {keys}"));
    if is_array(bytes) {
        return Err(invalid(&"it is an array"));
    }
    serde_json::from_slice(bytes).map_err(|error| invalid(&error))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => Ok(Some(String::from_utf8_lossy(key.as_bytes()).into_owned())),
        (Some(_), Some(_)) => Err(Error::BadRequest("Idempotency-Key is given twice; use it once".to_owned())),
    }
}
