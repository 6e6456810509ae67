//! Extractors: parts of a request, parsed before a handler runs.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use bytes::BytesMut;
use http_body::Body as _;
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::Peer;
use super::basic_token;
use super::connection::Connection;
use super::cross_site::is_cross_site;
use super::failure::Failure;
use super::forwarded::ForwardedFor;
use super::request_id::{RequestId, logged_path};
use crate::app::{App, Error};
use crate::auth::{BadToken, Requester, Session};
use crate::model::{DiskName, SnapshotId, VmId};
use crate::tls::ClientCertificate;

/// The session of a request. `super::authorization` has put it into the request, if the route needs a permission.
#[derive(Clone)]
pub(super) struct Authenticated(pub Session);

impl<S: Send + Sync> FromRequestParts<S> for Authenticated {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let session = parts.extensions.remove::<Self>();
        Ok(session.ok_or_else(|| Error::Internal("the route needs no permission, but its handler does".to_owned()))?)
    }
}

/// Authenticates a request: by its token or, without one, by the certificate of its connection; or as one of an operator
/// on the Unix socket, where tokens are ignored.
pub(super) async fn authenticate(app: &App, parts: &Parts) -> Result<Session, Failure> {
    let session = match parts.extensions.get() {
        Some(Peer::Local { uid, .. }) => {
            parts.extensions.get::<Session>().cloned().ok_or(Error::NotAnOperator { uid: *uid })
        }
        _ => {
            let (connection, none) = (parts.extensions.get::<Arc<Connection>>(), Mutex::default());
            let last = connection.map_or(&none, |connection| &connection.token);
            match (token(parts), parts.extensions.get::<Arc<ClientCertificate>>()) {
                (Some(token), _) => match app.sessions.check(&token, last) {
                    Ok(session) => app.sessions.recheck(&token).await.map(|()| session),
                    Err(error) => Err(error.into()),
                },
                (None, Some(_)) if is_cross_site(&parts.headers) => Err(Error::CrossSite),
                (None, Some(certificate)) => app.sessions.of_certificate(certificate),
                (None, None) => Err(BadToken.into()),
            }
        }
    };
    let requester = requester(parts);
    match session {
        Ok(session) => {
            if let Some(connection) = parts.extensions.get::<Arc<Connection>>() {
                connection.set_authenticated();
            }
            Ok(session.with_request(requester))
        }
        Err(error) => {
            app.trail.unauthenticated(requester, &logged_path(&parts.uri), &error);
            Err(error.into())
        }
    }
}

/// The token in the header Authorization. Empty if the header has credentials of another kind or is malformed: a client
/// that sends any is not known by its certificate.
fn token(parts: &Parts) -> Option<Cow<'_, str>> {
    let header = parts.headers.get(AUTHORIZATION)?.to_str().unwrap_or_default();
    // RFC 9110, 11.1: the scheme is case-insensitive.
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().into()),
        Some((scheme, credentials)) if scheme.eq_ignore_ascii_case("basic") => {
            basic_token::password(credentials).map(Cow::from)
        }
        _ => None,
    };
    Some(token.unwrap_or_default())
}

pub(super) fn requester(parts: &Parts) -> Requester {
    let extensions = &parts.extensions;
    Requester {
        address: extensions.get::<Peer>().map(Peer::address),
        forwarded_for: extensions.get::<ForwardedFor>().map(|ForwardedFor(client)| *client),
        request_id: extensions.get::<RequestId>().map(|RequestId(id)| Arc::clone(id)),
        ticket: None,
    }
}

/// The token of a request.
pub(super) struct BearerToken(pub SecretString);

impl<S: Send + Sync> FromRequestParts<S> for BearerToken {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let problem = "the request has no token; log out with the token of the log-in that is to end";
        let token = token(parts).filter(|token| !token.is_empty());
        Ok(Self(token.map(|token| token.as_ref().into()).ok_or_else(|| Error::BadRequest(problem.to_owned()))?))
    }
}

/// The origin of a request without a token.
pub(super) struct Origin(pub Requester);

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(requester(parts)))
    }
}

/// `{vm}` of a path.
pub(super) struct VmPath(pub VmId);
/// `{vm}` and `{snapshot}` of a path.
pub(super) struct SnapshotPath(pub VmId, pub SnapshotId);
/// `{vm}`, `{snapshot}` and `{disk}` of a path, or of the ticket of a request (`super::ticket`).
#[derive(Clone)]
pub(super) struct DiskPath(pub VmId, pub SnapshotId, pub DiskName);

/// The parameters of the path. One that is not UTF-8 names nothing.
async fn path<T: DeserializeOwned + Send>(parts: &mut Parts) -> Result<T, Failure> {
    let path = Path::<T>::from_request_parts(parts, &()).await;
    path.map(|Path(names)| names).map_err(|_| Failure::NoRoute)
}

/// An invalid id names nothing: 404, as for an unknown one.
fn id<T: FromStr>(text: &str, otherwise: &'static str) -> Result<T, Failure> {
    text.parse().map_err(|_| Error::NotFound(otherwise).into())
}

const NO_VM: &str = "no such VM; expected 32 hexadecimal digits, or a dashed uuid";
const NO_SNAPSHOT: &str = "no such snapshot; expected a dashed uuid";
const NO_DISK: &str = "the snapshot has no such disk";

impl<S: Send + Sync> FromRequestParts<S> for VmPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let vm: String = path(parts).await?;
        Ok(Self(id(&vm, NO_VM)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SnapshotPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let (vm, snapshot): (String, String) = path(parts).await?;
        Ok(Self(id(&vm, NO_VM)?, id(&snapshot, NO_SNAPSHOT)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DiskPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        if let Some(of_ticket) = parts.extensions.remove::<Self>() {
            return Ok(of_ticket);
        }
        let (vm, snapshot, disk): (String, String, String) = path(parts).await?;
        Ok(Self(id(&vm, NO_VM)?, id(&snapshot, NO_SNAPSHOT)?, id(&disk, NO_DISK)?))
    }
}

/// A disk, and what follows it in the path after its next segment.
pub(super) async fn disk_and(parts: &mut Parts) -> Result<(DiskPath, String), Failure> {
    let (vm, snapshot, disk, rest): (String, String, String, String) = path(parts).await?;
    Ok((DiskPath(id(&vm, NO_VM)?, id(&snapshot, NO_SNAPSHOT)?, id(&disk, NO_DISK)?), rest))
}

/// Of a request, in bytes.
pub(super) const BODY_LIMIT: usize = 64 << 10;

/// The body of a request, within limits of size and time.
pub(super) struct SmallBody(pub Bytes);

const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of a body that is too large are read and discarded up to here: a client that is still sending would not see
/// the answer.
const DISCARD_LIMIT: usize = 1 << 20;

impl<S: Send + Sync> FromRequest<S> for SmallBody {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let read = tokio::time::timeout(BODY_DEADLINE, read_small(request.into_body())).await;
        read.unwrap_or(Err(Failure::BodyTooSlow)).map(Self)
    }
}

async fn read_small(mut body: Body) -> Result<Bytes, Failure> {
    let (mut kept, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|_| Error::BadRequest("the body is cut off or malformed".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= BODY_LIMIT {
            kept.extend_from_slice(&data);
        } else if length > DISCARD_LIMIT {
            break;
        }
    }
    if length <= BODY_LIMIT { Ok(kept.freeze()) } else { Err(Failure::BodyTooLarge { limit: BODY_LIMIT }) }
}

/// Whether a JSON text is an array. The parser would accept an array as an object without names.
pub(super) fn is_array(text: &[u8]) -> bool {
    text.trim_ascii().first() == Some(&b'[')
}

/// A JSON body with any Content-Type, because `curl -d` calls it a form.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        if is_array(&bytes) {
            return Err(Error::BadRequest("the body is an array; expected an object".to_owned()).into());
        }
        // The parser's message may quote the body, which may contain a password.
        let parsed = serde_json::from_slice(&bytes).map_err(|error| {
            let what = if error.is_data() { "lacks a field, or has one of the wrong type" } else { "is not JSON" };
            Error::BadRequest(format!("the body {what} (line {}, column {})", error.line(), error.column()))
        })?;
        Ok(Self(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TakeLease;

    #[tokio::test]
    async fn a_body_is_an_object_with_names() {
        let parse = async |body: &'static str| {
            JsonBody::<TakeLease>::from_request(Request::new(Body::from(body)), &())
                .await
                .map(|JsonBody(lease)| lease.ttl)
        };
        assert_eq!(parse(" {\"ttl\": \"1h\"}\n").await.unwrap(), "1h");
        for body in ["[\"1h\"]", "\n [\"1h\"]", "\"1h\"", "null", "", "{}", "{\"ttl\": 1}"] {
            let refused = parse(body).await;
            assert!(matches!(refused, Err(Failure::App(Error::BadRequest(_)))), "{body:?}: {refused:?}");
        }
    }
}
