//! The pieces of a body, read into reused buffers.
//!
//! Memory use is constant: only pieces that are not sent yet are in memory. Holes are neither read nor copied.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc;

use bytes::Bytes;

use super::block_export::BlockExport;
use crate::repository::{OpenError, Read, Run};

/// The most bytes to read at a time.
pub(super) const PIECE: u64 = 256 << 10;

/// Ranges up to this length are not checked for holes.
const SHORT: u64 = 64 << 10;

/// The content of holes.
static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];

/// A part of a body.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes that are not from the disk, such as the header of a range.
    Text(Bytes),
    /// A range of the disk.
    Disk(Range<u64>),
}

impl Part {
    /// Bytes of the body.
    pub fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Disk(range) => range.end - range.start,
        }
    }
}

/// A buffer that returns to its reader after its last byte is sent.
struct Pooled {
    buffer: Vec<u8>,
    pool: mpsc::Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // If the reader no longer exists, the buffer is freed.
        let _ = self.pool.send(std::mem::take(&mut self.buffer));
    }
}

/// The pieces of a body, in order.
pub(super) struct Pieces<E> {
    pub export: E,
    /// The remaining parts.
    parts: VecDeque<Part>,
    /// The data or hole at the current offset, if it is known.
    run: Option<Run>,
    /// Bytes to read at a time, at most [`PIECE`].
    piece: u64,
    buffers: (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>),
}

impl<E: BlockExport> Pieces<E> {
    pub fn new(export: E, parts: Vec<Part>, piece: u64) -> Self {
        Self { export, parts: parts.into(), run: None, piece: piece.min(PIECE), buffers: mpsc::channel() }
    }

    /// Reads the next piece.
    pub fn next(&mut self) -> Result<Bytes, OpenError> {
        match self.parts.pop_front() {
            None => Err(OpenError::Io(io::ErrorKind::UnexpectedEof.into())),
            Some(Part::Disk(range)) if self.run.is_some() || range.end - range.start > self.short() => {
                self.next_of(range)
            }
            Some(part) => self.gather(part),
        }
    }

    /// Whether nothing of the disk follows. The file is verified before the client gets the last of it.
    fn is_end_of_disk(&self) -> bool {
        !self.parts.iter().any(|part| matches!(part, Part::Disk(_)))
    }

    /// Up to this length, reading a range is cheaper than checking it for holes.
    fn short(&self) -> u64 {
        SHORT.min(self.piece)
    }

    /// Combines the short `part` with as many of the following short parts as fit. They are read together.
    fn gather(&mut self, part: Part) -> Result<Bytes, OpenError> {
        let mut buffer = self.buffer();
        buffer.clear();
        let (mut next, mut reads) = (Some(part), Vec::new());
        while let Some(part) = next {
            match part {
                Part::Text(text) => buffer.extend_from_slice(&text),
                Part::Disk(range) => {
                    let (to, length) = (buffer.len(), (range.end - range.start) as usize);
                    buffer.resize(to + length, 0);
                    reads.push(Read { to, at: range.start, length, end: range.end });
                }
            }
            let room = self.piece.saturating_sub(buffer.len() as u64);
            let fits = self.parts.front().is_some_and(|part| part.len() <= room.min(self.short()));
            next = if fits { self.parts.pop_front() } else { None };
        }
        if reads.is_empty() {
            // Even a piece of text may be the first one, which is refused while the repository hangs.
            self.export.verify()?;
        } else {
            let is_last = self.is_end_of_disk();
            self.export.read(&mut buffer, &reads, is_last)?;
        }
        Ok(self.pooled(buffer))
    }

    /// The next piece of a long range.
    fn next_of(&mut self, range: Range<u64>) -> Result<Bytes, OpenError> {
        let at = range.start;
        let run = match self.run.take() {
            Some(run) => run,
            None => self.export.allocation(at, range.end)?,
        };
        let end = run.end.min(at + self.piece);
        let length = (end - at) as usize;
        let is_last = end == range.end && self.is_end_of_disk();
        let piece = if run.is_data {
            let mut buffer = self.buffer();
            buffer.resize(length, 0);
            self.export.read(&mut buffer, &[Read { to: 0, at, length, end: run.end }], is_last)?;
            self.pooled(buffer)
        } else {
            self.export.verify()?;
            Bytes::from_static(&ZEROS[..length])
        };
        self.run = (end < run.end).then_some(run);
        if end < range.end {
            self.parts.push_front(Part::Disk(end..range.end));
        }
        Ok(piece)
    }

    /// A returned buffer, if there is one.
    fn buffer(&self) -> Vec<u8> {
        self.buffers.1.try_recv().unwrap_or_default()
    }

    fn pooled(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Pooled { buffer, pool: self.buffers.0.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in memory: one MiB of data, then a hole of one MiB.
    struct Disk {
        data: Vec<u8>,
        /// Whether accesses fail.
        hangs: bool,
        /// Whether it was verified after the last read.
        is_verified: bool,
    }

    impl Disk {
        fn respond(&self) -> Result<(), OpenError> {
            if self.hangs { Err(io::Error::from(io::ErrorKind::TimedOut).into()) } else { Ok(()) }
        }
    }

    impl BlockExport for Disk {
        fn allocation(&mut self, at: u64, limit: u64) -> Result<Run, OpenError> {
            let is_data = at < 1 << 20;
            self.respond().map(|()| Run { is_data, end: limit.min(if is_data { 1 << 20 } else { 2 << 20 }) })
        }

        fn read(&mut self, buffer: &mut [u8], reads: &[Read], and_verify: bool) -> Result<(), OpenError> {
            self.respond()?;
            self.is_verified = and_verify;
            for Read { to, at, length, .. } in reads {
                let at = *at as usize;
                buffer[*to..to + length].copy_from_slice(&self.data[at..at + length]);
            }
            Ok(())
        }

        fn verify(&mut self) -> Result<(), OpenError> {
            self.is_verified = true;
            self.respond()
        }

        fn client_ready(&mut self) {}

        fn sent(&mut self, _bytes: u64) {}
    }

    fn disk(hangs: bool) -> Disk {
        let mut data: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 7) as u8).collect();
        data.resize(2 << 20, 0);
        Disk { data, hangs, is_verified: false }
    }

    #[test]
    fn pieces_are_the_parts_in_order() {
        for piece in [4096, 100_000, PIECE] {
            let text = |text: &'static str| Part::Text(Bytes::from_static(text.as_bytes()));
            let ranges = [0..10, 500_000..1_400_000, 2_000_000..2_000_001, 100..70_000, 1_048_575..1_048_577];
            let parts: Vec<Part> = ranges
                .iter()
                .flat_map(|range| [text("head"), Part::Disk(range.clone())])
                .chain([text("end")])
                .collect();
            let disk = disk(false);
            let mut expected = Vec::new();
            for range in ranges {
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&disk.data[range.start as usize..range.end as usize]);
            }
            expected.extend_from_slice(b"end");
            let (mut pieces, mut body) = (Pieces::new(disk, parts, piece), Vec::new());
            while body.len() < expected.len() {
                let next = pieces.next().unwrap();
                assert!(next.len() as u64 <= piece.max(SHORT), "{}", next.len());
                assert!(pieces.export.is_verified || !pieces.is_end_of_disk(), "the last bytes are not verified");
                body.extend_from_slice(&next);
            }
            assert!(body == expected, "the body differs with pieces of {piece} bytes");
            assert!(pieces.next().is_err(), "there is a piece past the end");
        }
    }

    /// Otherwise a client would get the first bytes of a body that cannot continue.
    #[test]
    fn a_first_piece_of_text_fails_while_the_repository_hangs() {
        let parts = vec![Part::Text(Bytes::from_static(b"head")), Part::Disk(0..1 << 20)];
        assert!(Pieces::new(disk(true), parts, PIECE).next().is_err());
    }
}
