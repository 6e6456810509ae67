//! Errors for input that never becomes a request: malformed heads, and plain HTTP on the TLS port.
//!
//! They are written without hyper, and look like all other errors: a JSON body, and an id in a header and in the log.

use std::io;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Peer;
use super::json::{self, JSON};
use super::request_id::REQUEST_ID;
use crate::api::{self, ErrorCode};

/// For sending the answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the client may continue to send.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that the client may continue to send.
const DRAIN_LIMIT: u64 = 4 << 20;

/// For receiving the head of a request in plain HTTP.
const PLAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Bytes of that head.
const PLAIN_HEAD_LIMIT: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RejectedInput {
    pub status: StatusCode,
    pub code: ErrorCode,
    pub details: String,
}

impl RejectedInput {
    pub(super) fn malformed(details: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: ErrorCode::BadRequest, details: details.into() }
    }

    pub(super) fn line_too_long(limit: usize) -> Self {
        let details = format!("the first line of the request is longer than {limit} bytes");
        Self { status: StatusCode::URI_TOO_LONG, code: ErrorCode::UriTooLong, details }
    }

    pub(super) fn head_too_large(details: String) -> Self {
        Self { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, code: ErrorCode::HeadersTooLarge, details }
    }

    /// Sends the answer and ends the connection. The answer to a HEAD request (`to_head`) has no body.
    pub(super) async fn answer(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Peer,
        to_head: bool,
    ) -> io::Result<()> {
        let (status, code) = (self.status, self.code);
        let id = uuid::Uuid::new_v4().to_string();
        let (status_code, error_code) = (status.as_u16(), code.as_str());
        let details = &self.details;
        tracing::info!(%id, %peer, status = status_code, code = error_code, ?details, "refused input that is not a request");
        let reason = status.canonical_reason().unwrap_or("Error");
        let body = api::Error { error: reason.to_owned(), details: self.details.clone(), code, request_id: id.clone() };
        let body = json::text(&body)?;
        let mut answer = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {JSON}\r\n{REQUEST_ID}: {id}\r\ncontent-length: {}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
            status.as_u16(),
            body.len()
        )
        .into_bytes();
        if !to_head {
            answer.extend(body);
        }
        let sent = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        timeout(ANSWER_DEADLINE, sent).await??;
        // A client that is still sending when the connection closes gets a reset instead of the answer.
        let mut rest = stream.take(DRAIN_LIMIT);
        let _ = timeout(DRAIN_DEADLINE, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        Ok(())
    }
}

pub(super) async fn answer_plain_http(mut stream: TcpStream, peer: Peer) -> io::Result<()> {
    let mut head = Vec::new();
    let whole = async {
        while head.len() < PLAIN_HEAD_LIMIT && !head.windows(2).any(|end| end == b"\n\r" || end == b"\n\n") {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    if let Ok(read) = timeout(PLAIN_DEADLINE, whole).await {
        read?;
    }
    let details = "this port speaks HTTPS; use https:// instead of http://".to_owned();
    let refusal = RejectedInput { status: StatusCode::BAD_REQUEST, code: ErrorCode::HttpsRequired, details };
    refusal.answer(stream, peer, head.starts_with(b"HEAD ")).await
}
