//! Bytes out: read as the client takes them, into buffers that are used again.
//!
//! Memory is constant: what the connection has not sent yet is all that there is of a body. Holes are
//! neither read nor copied. When anything is wrong (the file is short, or changed, or cannot be read) the
//! body ends in an error, the connection is cut before the promised length, and so the client notices:
//! nothing is ever padded.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc as pool;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::rate_limit::{ConnectionLimits, Reservation};
use crate::app::export::slot::ExportPlace;
use crate::metrics::Counter;
use crate::repository::executor::Access;
use crate::repository::{DiskFile, OpenError, PageCachePolicy, Run};

/// Bytes read at a time, at most.
const PIECE: u64 = 256 << 10;

/// Ranges up to this are not looked at for holes.
const SHORT: u64 = 64 << 10;

/// What a hole is sent as.
static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];

/// A part of a response's body.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Bytes that are there already.
    Text(Bytes),
    /// A range of the disk.
    Disk(Range<u64>),
}

impl Part {
    /// Bytes that it will be on the wire.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Disk(range) => range.end - range.start,
        }
    }
}

/// A body of known length, read as the client takes it.
///
/// Polling it blocks while the disk is read: it is for a connection that has its thread for itself.
pub(super) struct DiskBody {
    reader: Reader,
    /// A piece that was read, and when it may be sent.
    held: Option<(Bytes, Reservation)>,
    /// Until then.
    pause: Option<Pin<Box<Sleep>>>,
    remaining: u64,
    place: ExportPlace,
    limits: ConnectionLimits,
    /// Bytes of all bodies.
    served: Counter,
    span: tracing::Span,
}

impl DiskBody {
    /// A body of `parts` of `file`, the first piece of which is read; sent no faster than `limits` lets it.
    /// Counts in `served` what is taken. The place is held until the body is gone.
    ///
    /// # Errors
    /// Where the first piece cannot be read: later, nobody can be told.
    pub(super) fn start(
        file: Arc<DiskFile>,
        parts: Vec<Part>,
        place: ExportPlace,
        limits: ConnectionLimits,
        served: Counter,
    ) -> Result<Self, OpenError> {
        let remaining = parts.iter().map(Part::len).sum();
        let reader = Reader {
            file,
            parts: parts.into(),
            run: None,
            piece: limits.piece(PIECE),
            page_cache_policy: PageCachePolicy::default(),
            buffers: pool::channel(),
        };
        let span = tracing::Span::current();
        let mut body = Self { reader, held: None, pause: None, remaining, place, limits, served, span };
        match body.read() {
            Ok(()) => Ok(body),
            Err(error) => {
                body.remaining = 0; // nothing was promised
                Err(error)
            }
        }
    }

    /// Reads the next piece, and asks when it may be sent.
    fn read(&mut self) -> Result<(), OpenError> {
        let piece = self.place.during(|access| self.reader.next(access))?;
        let now = Instant::now();
        let turn = self.limits.take(piece.len() as u64, now);
        self.pause = (turn.at > now).then(|| Box::pin(sleep_until(turn.at)));
        self.held = Some((piece, turn));
        Ok(())
    }
}

impl http_body::Body for DiskBody {
    type Data = Bytes;
    type Error = OpenError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OpenError>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        self.place.is_asked();
        if self.held.is_none()
            && let Err(error) = self.read()
        {
            self.remaining = 0;
            self.span.in_scope(|| tracing::error!(%error, "the disk cannot be read: the connection is cut"));
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let Some((piece, turn)) = self.held.take() else { return Poll::Ready(None) };
        turn.was_taken();
        self.remaining = self.remaining.saturating_sub(piece.len() as u64);
        self.place.sent(piece.len() as u64);
        self.served.inc_by(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

impl Drop for DiskBody {
    fn drop(&mut self) {
        if self.remaining > 0 {
            self.span.in_scope(|| tracing::info!("the client went away before the end"));
        }
    }
}

/// A buffer that goes back to its reader when the last of its bytes is sent.
struct Pooled {
    buffer: Vec<u8>,
    home: pool::Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // Where the reader is gone already, the buffer goes too.
        let _ = self.home.send(std::mem::take(&mut self.buffer));
    }
}

/// The pieces of a body, in order.
struct Reader {
    file: Arc<DiskFile>,
    /// What is still to come.
    parts: VecDeque<Part>,
    /// What is known about the bytes that come next.
    run: Option<Run>,
    /// Bytes to read at a time, [`PIECE`] at most.
    piece: u64,
    page_cache_policy: PageCachePolicy,
    buffers: (pool::Sender<Vec<u8>>, pool::Receiver<Vec<u8>>),
}

impl Reader {
    fn next(&mut self, access: &Access<'_>) -> Result<Bytes, OpenError> {
        let piece = match self.parts.pop_front() {
            None => return Err(OpenError::Io(io::ErrorKind::UnexpectedEof.into())),
            Some(Part::Disk(range)) if self.run.is_some() || range.end - range.start > self.short() => {
                self.next_of(access, range)?
            }
            Some(part) => self.gather(access, part)?,
        };
        if !self.parts.iter().any(|part| matches!(part, Part::Disk(_))) {
            // Before the client has it all: that it is still what was snapshotted.
            self.file.verify_content(access)?;
        }
        Ok(piece)
    }

    /// Up to how many bytes a range is cheaper read, hole or not, than asked about.
    fn short(&self) -> u64 {
        SHORT.min(self.piece)
    }

    /// `part`, which is short, and those after it that are no more together.
    fn gather(&mut self, access: &Access<'_>, part: Part) -> Result<Bytes, OpenError> {
        let mut buffer = self.buffer();
        buffer.clear();
        let mut next = Some(part);
        while let Some(part) = next {
            match part {
                Part::Text(text) => buffer.extend_from_slice(&text),
                Part::Disk(range) => {
                    let filled = buffer.len();
                    buffer.resize(filled + (range.end - range.start) as usize, 0);
                    self.page_cache_policy.read(access, &self.file, &mut buffer[filled..], range.start, range.end)?;
                }
            }
            let room = self.short().saturating_sub(buffer.len() as u64);
            let goes_with_it = |part: &Part| part.len() <= room;
            next = if self.parts.front().is_some_and(goes_with_it) { self.parts.pop_front() } else { None };
        }
        Ok(self.pooled(buffer))
    }

    fn next_of(&mut self, access: &Access<'_>, range: Range<u64>) -> Result<Bytes, OpenError> {
        let at = range.start;
        let run = match self.run.take() {
            Some(run) => run,
            None => self.file.run_at(access, at, range.end)?,
        };
        let end = run.end.min(at + self.piece);
        let length = (end - at) as usize;
        let piece = if run.is_data {
            let mut buffer = self.buffer();
            buffer.resize(length, 0);
            self.page_cache_policy.read(access, &self.file, &mut buffer, at, run.end)?;
            self.pooled(buffer)
        } else {
            // What lies past the end of a file that was cut looks like a hole, and is none.
            self.file.verify_content(access)?;
            Bytes::from_static(&ZEROS[..length])
        };
        self.run = (end < run.end).then_some(run);
        if end < range.end {
            self.parts.push_front(Part::Disk(end..range.end));
        }
        Ok(piece)
    }

    /// A buffer that was used before, if there is one.
    fn buffer(&self) -> Vec<u8> {
        self.buffers.1.try_recv().unwrap_or_default()
    }

    fn pooled(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Pooled { buffer, home: self.buffers.0.clone() })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.file.executor().run_here_started(|access| self.page_cache_policy.release(access, &self.file, u64::MAX));
    }
}
