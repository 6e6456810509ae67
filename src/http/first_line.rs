//! A bound on the first line of a connection.
//!
//! hyper answers a request line that is longer than it can parse by itself, without a body. Ours
//! stops reading before that, so that the caller gets an error as from every other route.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::wire;

/// Bytes that the first line may have; hyper takes targets of up to 65,534.
const LIMIT: usize = 60 << 10;

/// A stream whose first line is bounded.
pub(super) struct FirstLine<S> {
    stream: S,
    /// Bytes read of the first line; nothing once its end was seen.
    read: Option<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FirstLine<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: Some(0) }
    }

    /// Whether reading stopped because the line is too long.
    pub(super) fn is_too_long(&self) -> bool {
        self.read.is_some_and(|read| read > LIMIT)
    }

    /// Answers such a line, and ends the connection.
    pub(super) async fn refuse(mut self) -> io::Result<()> {
        let request_id = uuid::Uuid::new_v4().to_string();
        tracing::info!(id = request_id, status = 414, "answered: the request line is too long");
        let body = wire::Error {
            error: "URI Too Long".to_owned(),
            details: format!("the first line of the request is longer than {LIMIT} bytes"),
            code: "uri_too_long",
            request_id: request_id.clone(),
        };
        let body = serde_json::to_string(&body)?;
        let answer = format!(
            "HTTP/1.1 414 URI Too Long\r\ncontent-type: application/json\r\nx-request-id: {request_id}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(answer.as_bytes()).await?;
        self.stream.shutdown().await?;
        // A client that is still sending gets a reset, and not the answer, if we close before it is
        // done; what it sends is bounded by the caller's deadline.
        tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await?;
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstLine<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let Some(read) = self.read else { return Poll::Ready(Ok(())) };
        let new = &buffer.filled()[before..];
        let line = new.iter().position(|byte| *byte == b'\n');
        let read = read + line.unwrap_or(new.len());
        self.read = (line.is_none() || read > LIMIT).then_some(read);
        Poll::Ready(if read > LIMIT { Err(io::Error::other("the first line is too long")) } else { Ok(()) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstLine<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
