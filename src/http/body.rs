//! A download as the body of a response.
//!
//! If the file is short, has changed, or cannot be read, the body ends in an error, and the connection is cut before
//! the announced length. So the client notices. The body is never padded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::app::export::{Download, Reservation};
use crate::repository::OpenError;

/// A body of known length. Polling it reads the disk and blocks, so it is only for connections with their own thread.
pub(super) struct DiskBody {
    download: Download,
    /// A piece that was read, and the reservation to send it.
    held: Option<(Bytes, Reservation)>,
    /// Sleeps until the time of the reservation.
    pause: Option<Pin<Box<Sleep>>>,
    has_failed: bool,
    span: tracing::Span,
}

impl DiskBody {
    pub(super) fn new(download: Download) -> Self {
        Self { download, held: None, pause: None, has_failed: false, span: tracing::Span::current() }
    }

    fn remaining(&self) -> u64 {
        if self.has_failed { 0 } else { self.download.remaining() }
    }
}

impl http_body::Body for DiskBody {
    type Data = Bytes;
    type Error = OpenError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OpenError>>> {
        if self.remaining() == 0 {
            return Poll::Ready(None);
        }
        self.download.client_ready();
        if self.held.is_none() {
            match self.download.next() {
                Ok((piece, reservation)) => {
                    self.pause = (reservation.at > Instant::now()).then(|| Box::pin(sleep_until(reservation.at)));
                    self.held = Some((piece, reservation));
                }
                Err(error) => {
                    self.has_failed = true;
                    self.span.in_scope(|| tracing::error!(%error, "cannot read the disk; cutting the connection"));
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let Some((piece, reservation)) = self.held.take() else { return Poll::Ready(None) };
        reservation.mark_sent();
        self.download.sent(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

impl Drop for DiskBody {
    fn drop(&mut self) {
        if self.remaining() > 0 {
            self.span.in_scope(|| tracing::info!("client disconnected before the end"));
        }
    }
}
