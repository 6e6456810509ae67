//! Whether a connection is sending an answer. Its stream and its service share this state.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
/// hyper has the whole answer, but has not flushed it.
const UNFLUSHED: u8 = 2;

/// Counts the requests of a connection, and tracks the current answer.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    state: AtomicU8,
    /// The number of requests.
    begun: AtomicU64,
    /// The number of the last request, from 1. 0: unknown.
    last: AtomicU64,
}

impl Exchange {
    /// Starts the answer to a request. It ends when the guard is dropped, and is flushed after that.
    pub(super) fn begin(self: &Arc<Self>) -> Answering {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.state.store(ANSWERING, Ordering::Release);
        Answering(Arc::clone(self))
    }

    /// All bytes are flushed. Returns whether that ended an answer.
    pub(super) fn flushed(&self) -> bool {
        self.state.compare_exchange(UNFLUSHED, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether no answer is being sent.
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == IDLE
    }

    /// Closes the connection after the request with this number, which may not have started yet.
    pub(super) fn end_after(&self, number: u64) {
        self.last.store(number, Ordering::Release);
    }

    /// Whether the connection is closed after the current answer.
    pub(super) fn is_last(&self) -> bool {
        let last = self.last.load(Ordering::Acquire);
        last > 0 && self.begun.load(Ordering::Acquire) >= last
    }
}

/// Marks an answer that is being sent.
#[derive(Debug)]
pub(super) struct Answering(Arc<Exchange>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state.store(UNFLUSHED, Ordering::Release);
    }
}

/// A body with the guard of its answer.
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

/// Makes hyper stop reading.
pub(super) fn refused() -> io::Error {
    io::Error::other("the request is refused")
}
