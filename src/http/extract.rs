//! What requests say, parsed before a handler sees it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{ACCEPT, AUTHORIZATION};
use axum::http::request::Parts;
use bytes::BytesMut;
use http_body::Body as _;
use serde::de::DeserializeOwned;

use super::Peer;
use super::exchange::logged_path;
use super::failure::Failure;
use crate::app::adopt::Adoption;
use crate::app::chunks::Wanted;
use crate::app::snapshots::View;
use crate::app::{App, Error, audit};
use crate::auth::{BadToken, Session};
use crate::config::{Refine, block_size};
use crate::model::{ChunkKind, DiskName, SnapshotId, VmId};

/// Whoever sent a good token.
pub(super) struct Authenticated(pub Session);

impl FromRequestParts<Arc<App>> for Authenticated {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // RFC 9110, 11.1: the scheme is case-insensitive.
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
            _ => None,
        };
        let session = token.ok_or(BadToken).and_then(|token| app.tokens().check(token));
        let address = address(parts);
        match session {
            Ok(session) => Ok(Self(session.seen_at(address))),
            Err(bad) => {
                audit::stranger(address, logged_path(&parts.uri));
                Err(bad.into())
            }
        }
    }
}

/// The address that the request came from, where it is known.
fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<Peer>().map(|Peer(address)| address.ip())
}

/// The same for a handler.
pub(super) struct PeerAddress(pub Option<IpAddr>);

impl<S: Send + Sync> FromRequestParts<S> for PeerAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(address(parts)))
    }
}

/// `{vm}` of a path.
pub(super) struct VmPath(pub VmId);
/// `{vm}` and `{snapshot}` of a path.
pub(super) struct SnapshotPath(pub VmId, pub SnapshotId);
/// `{vm}`, `{snapshot}` and `{disk}` of a path.
pub(super) struct DiskPath(pub VmId, pub SnapshotId, pub DiskName);

/// The named parts of the path. What is no text is the name of nothing.
async fn path<T: DeserializeOwned + Send>(parts: &mut Parts) -> Result<T, Failure> {
    let path = Path::<T>::from_request_parts(parts, &()).await;
    path.map(|Path(names)| names).map_err(|_| Failure::NoRoute)
}

/// What is no id names nothing: 404, as for an id that nobody has.
fn id<T: FromStr>(text: &str, otherwise: &'static str) -> Result<T, Failure> {
    text.parse().map_err(|_| Error::NotFound(otherwise).into())
}

const NO_VM: &str = "no such VM: it is named by 32 hexadecimal digits, or by its dashed uuid";
const NO_SNAPSHOT: &str = "no such snapshot: it is named by a dashed uuid";
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
        let (vm, snapshot, disk): (String, String, String) = path(parts).await?;
        Ok(Self(id(&vm, NO_VM)?, id(&snapshot, NO_SNAPSHOT)?, id(&disk, NO_DISK)?))
    }
}

/// The parameters of a query, as far as they are known.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) async fn of<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(pairs)| Self(pairs)).map_err(|error| Error::BadRequest(error.body_text()).into())
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value, if there is one that is not empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.value(name).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, name: &str, limit: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.given(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= limit => Ok(Some(number)),
            _ => Err(Error::BadRequest(format!("{name}={text:?}: write a number from 0 to {limit}")).into()),
        }
    }

    /// How a map is to be put.
    fn view(&self) -> Result<View, Failure> {
        let zeros = match self.given("zero") {
            None => None,
            Some("include") => Some(true),
            Some("omit") => Some(false),
            Some(other) => return Err(Error::BadRequest(format!("zero={other:?}: write include or omit")).into()),
        };
        Ok(View {
            compare_to: self.given("compareTo").map(|text| id(text, "compareTo names no snapshot")).transpose()?,
            squash: self.bool_or("squashChunks", true)?,
            chunks: self.bool_or("chunks", true)?,
            zeros,
            summary: self.bool_or("summary", false)?,
            refine: self.given("refine").map(refine).transpose()?,
        })
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, Failure> {
        self.value(name).map_or(Ok(default), |text| parse_bool(name, text))
    }
}

/// `dryRun` and `manifests` of a query.
pub(super) struct AdoptQuery(pub Adoption);

impl<S: Send + Sync> FromRequestParts<S> for AdoptQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state).await?;
        // Elsewhere what is unknown is ignored. Here a slip would do what was only to be tried.
        if let Some((name, _)) = query.0.iter().find(|(name, _)| !["dryRun", "manifests"].contains(&name.as_str())) {
            return Err(Error::BadRequest(format!("{name:?} is no parameter; there are dryRun and manifests")).into());
        }
        Ok(Self(Adoption { dry_run: query.bool_or("dryRun", false)?, manifests: query.bool_or("manifests", false)? }))
    }
}

/// `squashChunks`, `compareTo`, `zero`, `chunks` of a query. Unknown parameters are ignored.
pub(super) struct SnapshotQuery(pub View);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Parameters::of(parts, state).await?.view().map(Self)
    }
}

/// How the chunks of a disk are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON document with a page of them.
    Page,
    /// A JSON text a line, as they are found.
    Lines,
}

/// `compareTo`, `refine`, `type`, `zero`, `squashChunks`, `startingOffset`, `maxResults` of a query,
/// and `Accept`.
pub(super) struct ChunksQuery(pub Wanted, pub Form);

/// Chunks of a page, where nothing else is said, and at most.
const PAGE: usize = 10_000;
pub(super) const PAGE_LIMIT: usize = 100_000;

impl<S: Send + Sync> FromRequestParts<S> for ChunksQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state).await?;
        let accept = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let wants_lines = accept
            .flat_map(|value| value.split(','))
            .any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-ndjson"));
        let form = if wants_lines { Form::Lines } else { Form::Page };
        let kind = match query.given("type") {
            None => None,
            Some("data") => Some(ChunkKind::Data),
            Some("zero") => Some(ChunkKind::Zero),
            Some(other) => return Err(Error::BadRequest(format!("type={other:?}: write data or zero")).into()),
        };
        let mut view = query.view()?;
        // To refine by default, all of the disk would have to be looked at for each page.
        view.refine = view.refine.or(Some(Refine::Never));
        if kind == Some(ChunkKind::Zero) {
            view.zeros = Some(true);
        }
        let from = query.number("startingOffset", u64::MAX)?.unwrap_or_default();
        let (usual, limit) = if wants_lines { (usize::MAX, usize::MAX) } else { (PAGE, PAGE_LIMIT) };
        let at_most = query.number("maxResults", limit as u64)?;
        if at_most == Some(0) {
            return Err(Error::BadRequest("maxResults=0: at least one".to_owned()).into());
        }
        let at_most = at_most.map_or(usual, |number| usize::try_from(number).unwrap_or(usize::MAX));
        Ok(Self(Wanted { view, kind, from, at_most }, form))
    }
}

fn refine(text: &str) -> Result<Refine, Failure> {
    match text.parse::<u64>().ok().map(|bytes| (bytes, block_size(bytes))) {
        Some((0, _)) => Ok(Refine::Never),
        Some((_, Some(block))) => Ok(Refine::By(block)),
        _ => {
            let text = format!("refine={text:?}: write a power of two from 512 to 1048576, or 0 for none");
            Err(Error::BadRequest(text).into())
        }
    }
}

/// What Go's `strconv.ParseBool` takes: Python's clients send `True` and `False`.
fn parse_bool(name: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::BadRequest(format!("{name}={text:?}: write true or false")).into()),
    }
}

/// Bytes that a request's body may have.
pub(super) const BODY_LIMIT: usize = 64 << 10;

/// The bytes of a request's body, within a bound of size and time.
pub(super) struct SmallBody(pub Bytes);

/// How long a body may take.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes that are read of a body that is too large: a client that is still sending when the
/// connection ends would not see why.
const READ_IN_VAIN: usize = 1 << 20;

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
        let frame = frame.map_err(|_| Error::BadRequest("the body was cut off".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= BODY_LIMIT {
            kept.extend_from_slice(&data);
        } else if length > READ_IN_VAIN {
            break;
        }
    }
    if length <= BODY_LIMIT { Ok(kept.freeze()) } else { Err(Failure::BodyTooLarge { limit: BODY_LIMIT }) }
}

/// A body of JSON, whatever the Content-Type says: `curl -d` calls it a form.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        // The parser's own message may quote the body, and with it a password.
        let parsed = serde_json::from_slice(&bytes).map_err(|error| {
            let what = if error.is_data() { "lacks a field, or has one of another type" } else { "is not JSON" };
            Error::BadRequest(format!("the body {what} (line {}, column {})", error.line(), error.column()))
        })?;
        Ok(Self(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    #[test]
    fn booleans_are_those_of_go() {
        for (text, expected) in [
            ("1", true),
            ("t", true),
            ("T", true),
            ("TRUE", true),
            ("true", true),
            ("True", true),
            ("0", false),
            ("f", false),
            ("F", false),
            ("FALSE", false),
            ("false", false),
            ("False", false),
        ] {
            assert_eq!(parse_bool("chunks", text).unwrap(), expected, "{text}");
        }
        for text in ["", "yes", "tRUE", "2", " true"] {
            let status = parse_bool("chunks", text).unwrap_err().into_response().status();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        }
    }
}
