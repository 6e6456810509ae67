//! The ranges of a disk that a client fetches, and those that it fills with zeros.

use super::extent_map::Backing;
use super::range::{ByteRange, PhysAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// The client fetches the bytes.
    Data,
    /// The client writes zeros: nothing is stored there.
    Zero,
}

/// A range of a disk that differs from the client's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub range: ByteRange,
    pub kind: ChunkKind,
    /// The device address of the first byte, if the file system reports one.
    pub address: Option<PhysAddr>,
}

impl Chunk {
    pub fn of(range: ByteRange, backing: Backing) -> Self {
        let (kind, address) = match backing {
            Backing::Zero => (ChunkKind::Zero, None),
            Backing::Stored(address) => (ChunkKind::Data, Some(address)),
            Backing::Opaque => (ChunkKind::Data, None),
        };
        Self { range, kind, address }
    }

    /// The part of this chunk inside `range`, if any.
    pub fn within(&self, range: ByteRange) -> Option<Self> {
        let start = self.range.start().max(range.start());
        let range = ByteRange::new(start, self.range.end().min(range.end()))?;
        let skipped = start - self.range.start();
        Some(Self { range, address: self.address.map(|address| address.advanced(skipped)), ..*self })
    }

    /// Whether `next` continues this chunk on the device. The caller has checked that it continues it in the file.
    pub fn continues_in(&self, next: &Chunk) -> bool {
        match (self.kind, next.kind) {
            (ChunkKind::Zero, ChunkKind::Zero) => true,
            (ChunkKind::Data, ChunkKind::Data) => {
                self.address.map(|address| address.advanced(self.range.len())) == next.address
            }
            (ChunkKind::Data, ChunkKind::Zero) | (ChunkKind::Zero, ChunkKind::Data) => false,
        }
    }
}

/// Appends `next`, merged into the last chunk if the two touch and `joins` agrees.
fn append(chunks: &mut Vec<Chunk>, next: Chunk, joins: impl Fn(&Chunk, &Chunk) -> bool) {
    match chunks.last_mut() {
        Some(last) if last.range.end() == next.range.start() && joins(last, &next) => {
            last.range = last.range.joined(next.range);
        }
        _ => chunks.push(next),
    }
}

/// Appends `next`, merged into the last chunk if they are one run on the device.
pub fn append_run(chunks: &mut Vec<Chunk>, next: Chunk) {
    append(chunks, next, Chunk::continues_in);
}

/// A rule for [`joined`] that ignores addresses. The joined chunk keeps the first one's address.
pub fn same_kind(chunk: &Chunk, next: &Chunk) -> bool {
    chunk.kind == next.kind
}

/// Joins chunks of one kind that touch. Gaps stay gaps.
#[cfg(test)]
pub fn squash(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut joined = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        append(&mut joined, chunk, same_kind);
    }
    joined
}

/// Joins chunks, as they come, that touch and that `joins` agrees to.
pub fn joined<E, I: Iterator<Item = Result<Chunk, E>>>(chunks: I, joins: fn(&Chunk, &Chunk) -> bool) -> Joined<I, E> {
    Joined { chunks, joins, held: None, failed: None, is_over: false }
}

/// Chunks that are joined as they come.
pub struct Joined<I, E> {
    chunks: I,
    joins: fn(&Chunk, &Chunk) -> bool,
    /// The last chunk: the next one may go on where it ends.
    held: Option<Chunk>,
    /// An error that came while a chunk was held.
    failed: Option<E>,
    is_over: bool,
}

impl<I, E> Joined<I, E> {
    /// Where the chunks come from.
    pub fn inner(&self) -> &I {
        &self.chunks
    }

    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.chunks
    }
}

impl<E, I: Iterator<Item = Result<Chunk, E>>> Iterator for Joined<I, E> {
    type Item = Result<Chunk, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        while !self.is_over {
            match (self.chunks.next(), self.held.take()) {
                (None, last) => {
                    self.is_over = true;
                    return last.map(Ok);
                }
                (Some(Err(error)), None) => return Some(Err(error)),
                (Some(Err(error)), Some(last)) => {
                    self.failed = Some(error);
                    return Some(Ok(last));
                }
                (Some(Ok(next)), None) => self.held = Some(next),
                (Some(Ok(next)), Some(last))
                    if last.range.end() == next.range.start() && (self.joins)(&last, &next) =>
                {
                    self.held = Some(Chunk { range: last.range.joined(next.range), ..last });
                }
                (Some(Ok(next)), Some(last)) => {
                    self.held = Some(next);
                    return Some(Ok(last));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start: u64, end: u64, backing: Backing) -> Chunk {
        Chunk::of(ByteRange::new(start, end).unwrap(), backing)
    }

    #[test]
    fn squashing_joins_touching_chunks_and_fills_no_gap() {
        let far = Backing::Stored(PhysAddr(1 << 30));
        let near = Backing::Stored(PhysAddr(4096));
        let chunks = vec![
            chunk(0, 10, far),
            chunk(10, 20, near),
            chunk(20, 30, Backing::Zero),
            chunk(30, 40, Backing::Opaque),
            chunk(41, 50, Backing::Opaque),
        ];
        let squashed = squash(chunks);
        let expected = [
            chunk(0, 20, far),
            chunk(20, 30, Backing::Zero),
            chunk(30, 40, Backing::Opaque),
            chunk(41, 50, Backing::Opaque),
        ];
        assert_eq!(squashed, expected);
    }
}
