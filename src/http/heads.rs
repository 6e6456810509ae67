//! A stream that checks the head of each request before hyper reads it, and intercepts hyper's own refusals.
//!
//! hyper accepts heads that HTTP forbids, and that a proxy in front of us may read differently: lines that end with a
//! bare LF, both `Content-Length` and `Transfer-Encoding`, no `Host`, or two. And hyper's own refusals have no body, no
//! id, and no line in the log. [`RejectedInput::answer`] answers refused requests after hyper is done with the
//! connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use axum::http::StatusCode;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::exchanges::refused;
use super::head::{Follows, Head, LINE_LIMIT};
use super::refusal::RejectedInput;

/// hyper's limit of headers.
const MAX_HEADERS: usize = 100;

pub(super) struct Heads<S> {
    stream: S,
    connection: Arc<Connection>,
    head: Head,
    /// The number of heads that hyper has read.
    heads: u64,
    /// What follows the last head.
    follows: Follows,
    /// Bytes that hyper must not read yet.
    held: BytesMut,
    refusal: Option<RejectedInput>,
    /// That of hyper, which learns of a refusal only after the current answer.
    waker: Option<Waker>,
}

impl<S> Heads<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        let (head, follows, held) = (Head::default(), Follows::Head, BytesMut::new());
        Self { stream, connection, head, heads: 0, follows, held, refusal: None, waker: None }
    }

    /// The stream, the refusal of its last request, and whether that request had the method HEAD.
    pub(super) fn into_parts(self) -> (S, Option<RejectedInput>, bool) {
        (self.stream, self.refusal, self.head.is_for_head)
    }

    /// How many of these bytes hyper may read now.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        match self.follows {
            Follows::Rest => bytes.len(),
            Follows::Body(left) => {
                let passed = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.follows = match left - passed as u64 {
                    0 => Follows::Head,
                    left => Follows::Body(left),
                };
                passed
            }
            Follows::Head => match self.head.read(bytes) {
                Ok(None) => bytes.len(),
                Ok(Some((end, follows))) => {
                    self.follows = follows;
                    self.heads += 1;
                    if follows == Follows::Rest {
                        self.connection.exchange.end_after(self.heads);
                    }
                    end
                }
                Err(refusal) => {
                    self.refusal = Some(refusal);
                    0
                }
            },
        }
    }

    /// Replaces what hyper writes without a request: its own refusal, which has no body.
    fn intercept(&mut self, bytes: &[u8]) {
        let status = bytes.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok());
        self.refusal.get_or_insert_with(|| match status {
            Some(StatusCode::URI_TOO_LONG) => RejectedInput::line_too_long(LINE_LIMIT),
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => {
                RejectedInput::head_too_large(format!("the request has more than {MAX_HEADERS} headers"))
            }
            _ => RejectedInput::malformed(
                "the request is not HTTP/1.1 or HTTP/1.0: its first line or a header is malformed",
            ),
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refusal.is_none() {
            let before = buffer.filled().len();
            if this.held.is_empty() {
                ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            } else {
                let now = this.held.len().min(buffer.remaining());
                buffer.put_slice(&this.held[..now]);
                this.held.advance(now);
            }
            let new = &buffer.filled()[before..];
            let passed = this.pass(new);
            if passed < new.len() {
                let mut held = BytesMut::from(&new[passed..]);
                held.unsplit(std::mem::take(&mut this.held));
                this.held = held;
                buffer.set_filled(before + passed);
            }
        }
        if this.refusal.is_none() {
            return Poll::Ready(Ok(()));
        }
        if this.connection.exchange.is_idle() {
            return Poll::Ready(Err(refused()));
        }
        // An error would make hyper cut off the current answer.
        this.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if self.connection.exchange.is_idle() {
            self.intercept(buffer);
            return Poll::Ready(Ok(buffer.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // hyper flushes after it has written everything.
        if self.connection.exchange.flushed() {
            self.connection.has_answered();
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refusal.is_some() && self.connection.exchange.is_idle() {
            // The refusal is sent first.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.connection.exchange.is_idle() {
            buffers.iter().for_each(|buffer| self.intercept(buffer));
            return Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClientAddress;

    fn head(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\n{lines}\r\n")
    }

    #[tokio::test]
    async fn hyper_reads_one_request_at_a_time() {
        use std::time::Duration;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let requests = [
            head("Host: x\r\nContent-Length: 3\r\n") + "a\nb",
            head("Host: y\r\n"),
            head("Host: z\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\nGET / HTTP/1.1\n",
        ];
        let connection =
            || Arc::new(Connection::new(ClientAddress::Ip([127, 0, 0, 1].into()), false, Duration::from_secs(75)));
        let (text, first) = (requests.concat(), connection());
        let mut heads = Heads::new(tokio::io::join(text.as_bytes(), tokio::io::sink()), Arc::clone(&first));
        let mut all = String::new();
        heads.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, text);
        // The end of the third is unknown.
        assert_eq!([(); 3].map(|()| (drop(first.exchange.begin()), first.exchange.is_last()).1), [false, false, true]);

        // A refusal waits for the answer before it.
        let (text, second) = (requests[1].clone() + &head(""), connection());
        let answering = second.exchange.begin();
        let mut heads = Heads::new(tokio::io::join(text.as_bytes(), tokio::io::sink()), Arc::clone(&second));
        let mut buffer = [0; 1000];
        assert_eq!(heads.read(&mut buffer).await.unwrap(), requests[1].len());
        let early = tokio::time::timeout(Duration::from_millis(1), heads.read(&mut buffer)).await;
        assert!(early.is_err(), "{early:?}");
        drop(answering);
        heads.flush().await.unwrap();
        assert!(heads.read(&mut buffer).await.is_err());
        assert_eq!(heads.into_parts().1.map(|refusal| refusal.status), Some(StatusCode::BAD_REQUEST));
    }
}
