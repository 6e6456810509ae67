//! JSON that is written out while it is made: memory does not grow with what is listed.
//!
//! The first part is held back. What goes wrong until then is an answer with a status of its own;
//! after that the connection is cut, and so the client notices.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use super::failure::Failure;
use crate::app::Error;
use crate::app::compare::comparison::Cancellation;

/// Bytes that are held back before a status is given.
const HELD: usize = 256 << 10;
/// Bytes sent at a time.
const PIECE: usize = 64 << 10;
/// How long a line waits for more to be sent with it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pieces that wait for the client.
const AHEAD: usize = 2;

/// How an answer begins.
enum Start {
    /// This is all of it.
    Whole(Vec<u8>),
    /// The first of it; more comes.
    First(Vec<u8>, mpsc::Receiver<io::Result<Bytes>>),
}

/// Answers with `document`, whose streams are ended by `stop`.
pub(super) async fn document<T: Serialize + Send + 'static>(
    document: T,
    stop: Cancellation,
) -> Result<Response, Failure> {
    respond("application/json", stop, move |writer| {
        serde_json::to_writer(&mut *writer, &document)?;
        writer.write_all(b"\n").map_err(serde_json::Error::io)
    })
    .await
}

/// Answers with `lines`, a JSON text each.
pub(super) async fn lines<T: Serialize>(
    lines: impl Iterator<Item = T> + Send + 'static,
    stop: Cancellation,
) -> Result<Response, Failure> {
    respond("application/x-ndjson", stop, move |writer| {
        for line in lines {
            serde_json::to_writer(&mut *writer, &line)?;
            writer.write_all(b"\n").and_then(|()| writer.send_if_due()).map_err(serde_json::Error::io)?;
        }
        Ok(())
    })
    .await
}

async fn respond(
    content_type: &'static str,
    stop: Cancellation,
    write: impl FnOnce(&mut Writer) -> serde_json::Result<()> + Send + 'static,
) -> Result<Response, Failure> {
    // Whoever drops this future or the body, such as a connection that ends, ends the work too.
    let guard = stop.cancel.clone().drop_guard();
    let (started, start) = oneshot::channel();
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _in_span = span.entered();
        let mut writer = Writer { buffer: Vec::new(), started: Some(started), pieces: None, sent_at: None };
        let written = write(&mut writer);
        writer.finish(written, &stop);
    });
    let start = start.await.unwrap_or_else(|_| Err(Error::Internal("the answer's writer is gone".to_owned())))?;
    let mut response = match start {
        Start::Whole(text) => {
            let length = HeaderValue::from(text.len());
            let mut response = Body::from(text).into_response();
            response.headers_mut().insert(CONTENT_LENGTH, length);
            response
        }
        Start::First(first, pieces) => {
            let body = StreamBody { first: Some(first.into()), pieces, is_complete: false, _guard: guard };
            Body::new(body).into_response()
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// Where the JSON is written to.
struct Writer {
    buffer: Vec<u8>,
    started: Option<oneshot::Sender<Result<Start, Error>>>,
    pieces: Option<mpsc::Sender<io::Result<Bytes>>>,
    sent_at: Option<Instant>,
}

impl Writer {
    fn send(&mut self) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let piece = std::mem::take(&mut self.buffer);
        self.sent_at = Some(Instant::now());
        match (self.started.take(), &self.pieces) {
            (Some(started), _) => {
                let (sender, pieces) = mpsc::channel(AHEAD);
                self.pieces = Some(sender);
                started.send(Ok(Start::First(piece, pieces))).map_err(|_| gone())
            }
            (None, Some(pieces)) => pieces.blocking_send(Ok(piece.into())).map_err(|_| gone()),
            (None, None) => Err(gone()),
        }
    }

    /// Sends what there is, where it has waited long enough: the first line at once.
    fn send_if_due(&mut self) -> io::Result<()> {
        let is_due = self.sent_at.is_none_or(|at| at.elapsed() > PATIENCE);
        if is_due && !self.buffer.is_empty() { self.send() } else { Ok(()) }
    }

    fn finish(mut self, written: serde_json::Result<()>, stop: &Cancellation) {
        let failed = written.err().map(|error| stop.cause().unwrap_or_else(|| Error::Internal(error.to_string())));
        // A client that is gone hears nothing any more.
        match (failed, self.started.take(), &self.pieces) {
            (None, Some(started), _) => drop(started.send(Ok(Start::Whole(self.buffer)))),
            (Some(error), Some(started), _) => drop(started.send(Err(error))),
            (None, None, _) => {
                drop(self.send());
                // Only what says so is complete: a writer that dies says nothing.
                if let Some(pieces) = &self.pieces {
                    drop(pieces.blocking_send(Ok(Bytes::new())));
                }
            }
            (Some(_), None, _) if stop.cancel.is_cancelled() => tracing::info!("the client went away before the end"),
            (Some(error), None, pieces) => {
                let cause = error.hidden_cause().unwrap_or_default();
                tracing::error!(%error, cause, "an answer cannot be finished: the connection is cut");
                if let Some(pieces) = pieces {
                    drop(pieces.blocking_send(Err(io::Error::other(error.to_string()))));
                }
            }
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        let room = if self.started.is_some() { HELD } else { PIECE };
        if self.buffer.len() >= room {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The body of an answer of which only the beginning was known.
struct StreamBody {
    first: Option<Bytes>,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    is_complete: bool,
    _guard: DropGuard,
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.is_complete {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(context)) {
            Some(Ok(piece)) if piece.is_empty() => {
                self.is_complete = true;
                None
            }
            Some(piece) => Some(piece.map(Frame::data)),
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}
