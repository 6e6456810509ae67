//! Bytes out: a thread reads the disk ahead of the client, into buffers that are used again.
//!
//! Memory is constant: at most [`AHEAD`] pieces wait, and a client that takes nothing holds up its
//! own thread and nobody else. Holes are neither read nor copied. When anything is wrong (the file
//! is short, or changed, or cannot be read) the body ends in an error, the connection is cut before
//! the promised length, and so the client notices: nothing is ever padded.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc as pool;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use crate::app::reads::ExportPlace;
use crate::metrics::Counter;
use crate::repository::DiskFile;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// Pieces that wait for the client.
const AHEAD: usize = 2;

/// What a hole is sent as.
static ZEROS: [u8; PIECE] = [0; PIECE];

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

/// A body of known length that a thread produces.
pub(super) struct DiskBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    remaining: u64,
    place: ExportPlace,
    /// Bytes of all bodies.
    served: Counter,
}

impl DiskBody {
    /// Starts to read `parts` of `file`; counts in `served` what is taken. The place is held until the
    /// body is gone.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub(super) fn start(
        file: Arc<DiskFile>,
        parts: Vec<Part>,
        place: ExportPlace,
        served: Counter,
    ) -> io::Result<Self> {
        let remaining = parts.iter().map(Part::len).sum();
        let (sender, pieces) = mpsc::channel(AHEAD);
        let span = tracing::Span::current();
        let reader = Reader { file, pieces: sender, buffers: pool::channel() };
        std::thread::Builder::new().name("disk-reader".to_owned()).stack_size(256 << 10).spawn(move || {
            let _in_span = span.entered();
            reader.run(parts);
        })?;
        Ok(Self { pieces, remaining, place, served })
    }
}

impl http_body::Body for DiskBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(context));
        let piece = piece.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
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

/// Why a reader stops before its end.
enum Stop {
    /// The client is gone, or was cut off.
    NobodyTakes,
    /// The disk cannot be read, or is not what it was.
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

struct Reader {
    file: Arc<DiskFile>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffers: (pool::Sender<Vec<u8>>, pool::Receiver<Vec<u8>>),
}

impl Reader {
    fn run(&self, parts: Vec<Part>) {
        match self.send_all(parts) {
            Ok(()) => {}
            Err(Stop::NobodyTakes) => tracing::info!("the client went away before the end"),
            Err(Stop::Failed(error)) => {
                tracing::error!(%error, "the disk cannot be read: the connection is cut");
                let _ = self.pieces.blocking_send(Err(error));
            }
        }
    }

    fn send_all(&self, parts: Vec<Part>) -> Result<(), Stop> {
        let last_disk_part = parts.iter().rposition(|part| matches!(part, Part::Disk(_)));
        for (index, part) in parts.into_iter().enumerate() {
            match part {
                Part::Text(text) => self.send(text)?,
                Part::Disk(range) => self.send_range(range, Some(index) == last_disk_part)?,
            }
        }
        Ok(())
    }

    fn send_range(&self, range: Range<u64>, is_last: bool) -> Result<(), Stop> {
        let mut at = range.start;
        while at < range.end {
            let run = self.file.run_at(at, range.end)?;
            while at < run.end {
                let length = usize::try_from(run.end - at).unwrap_or(PIECE).min(PIECE);
                let piece = if run.is_data { self.read(at, length)? } else { Bytes::from_static(&ZEROS[..length]) };
                at += length as u64;
                if !run.is_data || (is_last && at == range.end) {
                    // Before the client has it all: that it is still what was snapshotted. And what
                    // lies past the end of a file that was cut looks like a hole, and is none.
                    self.file.verify_content().map_err(io::Error::other)?;
                }
                self.send(piece)?;
            }
        }
        Ok(())
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let (home, returned) = &self.buffers;
        let mut buffer = returned.try_recv().unwrap_or_default();
        buffer.resize(length, 0);
        self.file.read_exact_at(&mut buffer, at)?;
        Ok(Bytes::from_owner(Pooled { buffer, home: home.clone() }))
    }

    fn send(&self, piece: Bytes) -> Result<(), Stop> {
        self.pieces.blocking_send(Ok(piece)).map_err(|_| Stop::NobodyTakes)
    }
}
