//! Streams JSON, and other bytes, so that memory does not grow with the length of a list.
//!
//! The first part is held back. A failure before it is sent gets an error response; a later one cuts the connection, so
//! that the client notices.

use std::io::{self, Read};
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
use super::json::JSON;
use crate::app::Error;
use crate::app::cancellation::Cancellation;

/// Bytes that are held back before the status is sent.
const HOLD_BACK: usize = 256 << 10;
/// Bytes sent at a time.
const PIECE: usize = 64 << 10;
/// How long a line is buffered to be sent together with others.
const LINE_DELAY: Duration = Duration::from_secs(1);
/// The most pieces that are buffered for the client.
const MAX_BUFFERED: usize = 2;

/// The beginning of a response.
enum Start {
    /// The complete response.
    Whole(Vec<u8>),
    /// The first part. More follows.
    First(Vec<u8>, mpsc::Receiver<io::Result<Bytes>>),
}

/// The reason why a response is incomplete.
pub(super) enum WriteError {
    /// The client has disconnected.
    Disconnected,
    Failed(Error),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Written = Result<(), WriteError>;

/// Responds with the JSON document from `write`. What `write` returns is kept until all of it is sent.
pub(super) async fn document<K>(
    cancellation: Cancellation,
    write: impl FnOnce(&mut JsonWriter) -> Result<K, WriteError> + Send + 'static,
) -> Result<Response, Failure> {
    respond(JSON, cancellation, move |writer| {
        let kept = write(writer)?;
        writer.raw(b"\n")?;
        Ok(kept)
    })
    .await
}

/// Responds with `lines`, each a JSON text.
pub(super) async fn lines<T: Serialize>(
    mut lines: impl Iterator<Item = Result<T, Error>> + Send + 'static,
    cancellation: Cancellation,
) -> Result<Response, Failure> {
    respond("application/x-ndjson", cancellation, move |writer| {
        for line in lines.by_ref() {
            writer.value(&line?)?;
            writer.raw(b"\n")?;
            writer.send_if_due()?;
        }
        Ok(lines)
    })
    .await
}

/// Responds with the bytes of `source`.
pub(super) async fn bytes(mut source: impl Read + Send + 'static) -> Result<Response, Failure> {
    respond("application/octet-stream", Cancellation::default(), move |writer| {
        let mut piece = vec![0; PIECE];
        loop {
            let count = source.read(&mut piece).map_err(|error| Error::of_step("reading the copy", error))?;
            if count == 0 {
                return Ok(source);
            }
            writer.raw(&piece[..count])?;
        }
    })
    .await
}

async fn respond<K>(
    content_type: &'static str,
    cancellation: Cancellation,
    write: impl FnOnce(&mut JsonWriter) -> Result<K, WriteError> + Send + 'static,
) -> Result<Response, Failure> {
    // Dropping this future or the body, as a disconnect does, cancels the work.
    let guard = cancellation.on_drop();
    let (started, start) = oneshot::channel();
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _in_span = span.entered();
        let mut writer = JsonWriter { buffer: Vec::new(), started: Some(started), pieces: None, sent_at: None };
        let (written, _kept) = match write(&mut writer) {
            Ok(kept) => (Ok(()), Some(kept)),
            Err(error) => (Err(error), None),
        };
        writer.finish(written, &cancellation);
    });
    let start = start
        .await
        .unwrap_or_else(|_| Err(Error::Internal("the writer of the response ended without a result".to_owned())))?;
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

/// Writes JSON, and sends it piece by piece.
pub(super) struct JsonWriter {
    buffer: Vec<u8>,
    started: Option<oneshot::Sender<Result<Start, Error>>>,
    pieces: Option<mpsc::Sender<io::Result<Bytes>>>,
    sent_at: Option<Instant>,
}

impl JsonWriter {
    pub(super) fn value(&mut self, value: &impl Serialize) -> Written {
        let written = serde_json::to_writer(&mut self.buffer, value);
        written.map_err(|error| Error::Internal(error.to_string()))?;
        self.send_if_full()
    }

    /// Writes an array of values.
    pub(super) fn array<T: Serialize>(&mut self, values: impl Iterator<Item = Result<T, Error>>) -> Written {
        self.array_of(values, |writer, value| writer.value(&value?))
    }

    /// Writes an array. `write` writes each element.
    pub(super) fn array_of<T>(
        &mut self,
        elements: impl Iterator<Item = T>,
        mut write: impl FnMut(&mut Self, T) -> Written,
    ) -> Written {
        self.raw(b"[")?;
        for (index, element) in elements.enumerate() {
            if index > 0 {
                self.raw(b",")?;
            }
            write(self, element)?;
        }
        self.raw(b"]")
    }

    /// Writes an object.
    pub(super) fn object(&mut self, write: impl FnOnce(&mut ObjectWriter<'_>) -> Written) -> Written {
        self.raw(b"{")?;
        write(&mut ObjectWriter { writer: self, is_empty: true })?;
        self.raw(b"}")
    }

    fn raw(&mut self, text: &[u8]) -> Written {
        self.buffer.extend_from_slice(text);
        self.send_if_full()
    }

    fn send_if_full(&mut self) -> Written {
        let room = if self.started.is_some() { HOLD_BACK } else { PIECE };
        if self.buffer.len() >= room { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Written {
        let piece = std::mem::take(&mut self.buffer);
        self.sent_at = Some(Instant::now());
        match (self.started.take(), &self.pieces) {
            (Some(started), _) => {
                let (sender, pieces) = mpsc::channel(MAX_BUFFERED);
                self.pieces = Some(sender);
                started.send(Ok(Start::First(piece, pieces))).map_err(|_| WriteError::Disconnected)
            }
            (None, Some(pieces)) => pieces.blocking_send(Ok(piece.into())).map_err(|_| WriteError::Disconnected),
            (None, None) => Err(WriteError::Disconnected),
        }
    }

    /// Sends the buffer if [`LINE_DELAY`] has passed. The first line is sent at once.
    fn send_if_due(&mut self) -> Written {
        let is_due = self.sent_at.is_none_or(|at| at.elapsed() > LINE_DELAY);
        if is_due && !self.buffer.is_empty() { self.send() } else { Ok(()) }
    }

    fn finish(mut self, written: Written, cancellation: &Cancellation) {
        let error = match written {
            Ok(()) => return self.finish_completely(),
            Err(WriteError::Disconnected) => None,
            Err(WriteError::Failed(error)) => Some(error),
        };
        match (error, self.started.take(), &self.pieces) {
            (Some(error), Some(started), _) => drop(started.send(Err(error))),
            (Some(error), None, pieces) if !cancellation.is_cancelled() => {
                let cause = error.hidden_cause().unwrap_or_default();
                tracing::error!(%error, cause, "cannot complete the response; cutting the connection");
                if let Some(pieces) = pieces {
                    drop(pieces.blocking_send(Err(io::Error::other(error.to_string()))));
                }
            }
            _ => tracing::info!("client disconnected before the end"),
        }
    }

    fn finish_completely(mut self) {
        if let Some(started) = self.started.take() {
            return drop(started.send(Ok(Start::Whole(self.buffer))));
        }
        drop(self.send());
        // This marks the response as complete. A writer that panics does not send it.
        if let Some(pieces) = &self.pieces {
            drop(pieces.blocking_send(Ok(Bytes::new())));
        }
    }
}

/// Writes the members of an object.
pub(super) struct ObjectWriter<'a> {
    writer: &'a mut JsonWriter,
    is_empty: bool,
}

impl ObjectWriter<'_> {
    /// Writes all members of `value`, which must serialize as an object.
    pub(super) fn members(&mut self, value: &impl Serialize) -> Written {
        let text = serde_json::to_vec(value).map_err(|error| Error::Internal(error.to_string()))?;
        let members = text.strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}"));
        let members = members.ok_or_else(|| Error::Internal("a response is not a JSON object".to_owned()))?;
        if members.is_empty() {
            return Ok(());
        }
        self.separate()?;
        self.writer.raw(members)
    }

    /// Writes a member. `write` writes its value.
    pub(super) fn member(&mut self, name: &str, write: impl FnOnce(&mut JsonWriter) -> Written) -> Written {
        self.separate()?;
        self.writer.value(&name)?;
        self.writer.raw(b":")?;
        write(self.writer)
    }

    fn separate(&mut self) -> Written {
        if std::mem::take(&mut self.is_empty) { Ok(()) } else { self.writer.raw(b",") }
    }
}

/// The body of a streamed response.
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
