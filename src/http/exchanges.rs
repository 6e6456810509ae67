//! Whether a connection is in the middle of an answer. Its stream and its service both have to know.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
/// The whole answer was handed over, and is not flushed yet.
const HANDED_OVER: u8 = 2;

/// The exchange of a request and its answer on one connection.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    state: AtomicU8,
    /// How many requests have come.
    begun: AtomicU64,
    /// Which of them is the last, counted from 1; 0: none is, so far.
    last: AtomicU64,
}

impl Exchange {
    /// A request has come. It is answered when the guard is dropped, and the answer is flushed after that.
    pub(super) fn begin(self: &Arc<Self>) -> Answering {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.state.store(ANSWERING, Ordering::Release);
        Answering(Arc::clone(self))
    }

    /// All that was handed over is flushed. Whether that ended an exchange.
    pub(super) fn flushed(&self) -> bool {
        self.state.compare_exchange(HANDED_OVER, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether no answer is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == IDLE
    }

    /// The connection ends after the request with this number, which may not have begun yet.
    pub(super) fn end_after(&self, number: u64) {
        self.last.store(number, Ordering::Release);
    }

    /// Whether the connection ends after this exchange.
    pub(super) fn is_last(&self) -> bool {
        let last = self.last.load(Ordering::Acquire);
        last > 0 && self.begun.load(Ordering::Acquire) >= last
    }
}

/// An answer that is being made, and sent.
#[derive(Debug)]
pub(super) struct Answering(Arc<Exchange>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state.store(HANDED_OVER, Ordering::Release);
    }
}

/// A body that is a part of an exchange.
pub(super) struct AnswerBody {
    body: Body,
    _answering: Answering,
}

impl AnswerBody {
    pub(super) fn new(body: Body, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a stream tells hyper where it must not read on.
pub(super) fn refused() -> io::Error {
    io::Error::other("the request is refused")
}
