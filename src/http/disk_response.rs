//! Responds to requests for a disk's bytes, in these steps:
//!
//! 1. Evaluate the conditions (RFC 9110, 13): 304 or 412.
//! 2. Select the ranges (14): 416, 206 with one, 206 `multipart/byteranges` with several, or 200.
//! 3. Build the parts of the body. The sum of their lengths is the Content-Length.
//! 4. Calculate the requested digests (RFC 9530), of the disk and of these parts.
//! 5. Wait for a concurrency slot: 429 if that takes too long.
//! 6. Send the body. The first piece is read before the response starts, the others as the client takes them.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::body::DiskBody;
use super::byte_range::{self, Selection};
use super::conditional::{self, Precondition, StrongTag, Validators};
use super::connection::Connection;
use super::digest;
use super::failure::Failure;
use crate::app::cancellation::Cancellation;
use crate::app::export::{ConnectionLimits, Part};
use crate::app::files::OpenDisk;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::repository::checksum::Algorithm;

const OCTETS: &str = "application/octet-stream";

/// The longest content that gets a `Content-Digest`, because it is read twice.
pub(super) const MAX_DIGESTED: u64 = 16 << 20;

/// The client of a request, with its connection and limits.
pub(super) struct Client {
    pub session: Session,
    pub limits: ConnectionLimits,
    pub connection: Arc<Connection>,
}

pub(super) async fn respond(
    app: &Arc<App>,
    client: &Client,
    method: &Method,
    headers: &HeaderMap,
    disk: OpenDisk,
) -> Result<Response, Failure> {
    let size = disk.file.size();
    let validators = Validators { etag: StrongTag::new(&disk.version), last_modified: SystemTime::from(disk.taken_at) };
    let range_counts = match conditional::evaluate(method, headers, &validators) {
        Precondition::NotModified => {
            return with_headers(StatusCode::NOT_MODIFIED, Body::empty(), validator_headers(&validators));
        }
        Precondition::Failed => return Err(Failure::PreconditionFailed),
        Precondition::Proceed { honour_range } => honour_range,
    };
    let selection = if range_counts { byte_range::select(headers, size) } else { Ok(Selection::Whole) };
    let Ok(selection) = selection else { return Err(Failure::RangeNotSatisfiable { size }) };

    let mut out = validator_headers(&validators);
    out.push((ACCEPT_RANGES, "bytes".to_owned()));
    let mut count = 1;
    let (status, content_type, parts) = match selection {
        Selection::Whole => (StatusCode::OK, OCTETS.to_owned(), vec![Part::Disk(0..size)]),
        Selection::One(range) => {
            out.push((CONTENT_RANGE, byte_range::content_range(&range, size)));
            (StatusCode::PARTIAL_CONTENT, OCTETS.to_owned(), vec![Part::Disk(range)])
        }
        Selection::Many(ranges) => {
            count = ranges.len() as u64;
            let boundary = uuid::Uuid::new_v4().simple().to_string();
            let content_type = format!("multipart/byteranges; boundary={boundary}");
            (StatusCode::PARTIAL_CONTENT, content_type, multipart(&boundary, ranges, size))
        }
    };
    out.push((CONTENT_TYPE, content_type));
    let length: u64 = parts.iter().map(Part::len).sum();
    out.push((CONTENT_LENGTH, length.to_string()));
    // The response to HEAD has no content.
    let content = Some(&*parts).filter(|_| *method != Method::HEAD && length <= MAX_DIGESTED);
    digests(app, client, headers, &disk, content, &mut out).await?;
    let body = if *method == Method::HEAD || length == 0 {
        Body::empty()
    } else {
        let connection = Arc::clone(&client.connection);
        let (parts, limits) = ((parts, count), client.limits.clone());
        let download = app.exports.download(&client.session, disk, parts, connection, limits).await?;
        Body::new(DiskBody::new(download))
    };
    with_headers(status, body, out)
}

/// Adds the requested digests: that of the disk, and that of the body, if it has `content`. They must be complete before the response starts, because they are headers.
async fn digests(
    app: &Arc<App>,
    client: &Client,
    headers: &HeaderMap,
    disk: &OpenDisk,
    content: Option<&[Part]>,
    out: &mut Vec<(HeaderName, String)>,
) -> Result<(), Failure> {
    let cancellation = Cancellation::default();
    let _guard = cancellation.on_drop();
    if digest::wants_sha_256(headers, digest::WANT_REPR_DIGEST) {
        let sum = app.checksums.of_disk(disk, Algorithm::Sha256, &cancellation).await;
        let ((vm, snapshot), name) = (&disk.snapshot, &disk.disk.name);
        app.trail.read(&client.session, "checksum", format_args!("{vm}/{snapshot}/{name}"), &sum);
        out.push((digest::REPR_DIGEST, digest::field(sum?)));
    }
    if let Some(parts) = content
        && digest::wants_sha_256(headers, digest::WANT_CONTENT_DIGEST)
    {
        let sum = app.checksums.of_body(disk, parts, Algorithm::Sha256, &cancellation).await?;
        out.push((digest::CONTENT_DIGEST, digest::field(sum)));
    }
    Ok(())
}

fn validator_headers(validators: &Validators) -> Vec<(HeaderName, String)> {
    vec![(ETAG, validators.etag.as_str().to_owned()), (LAST_MODIFIED, validators.last_modified_value())]
}

fn with_headers(status: StatusCode, body: Body, headers: Vec<(HeaderName, String)>) -> Result<Response, Failure> {
    let mut response = (status, body).into_response();
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).map_err(|error| Error::Internal(error.to_string()))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// A multipart body (RFC 9110, 14.6): each range follows its header.
fn multipart(boundary: &str, ranges: Vec<Range<u64>>, size: u64) -> Vec<Part> {
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for range in ranges {
        let content_range = byte_range::content_range(&range, size);
        let head = format!("\r\n--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Range: {content_range}\r\n\r\n");
        parts.push(Part::Text(Bytes::from(head)));
        parts.push(Part::Disk(range));
    }
    parts.push(Part::Text(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    parts
}
