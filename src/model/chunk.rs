//! What a client is told: ranges to take, and ranges that are zeros.

use super::extent_map::Backing;
use super::range::{ByteRange, PhysAddr};

/// What a client has to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Fetch its bytes.
    Data,
    /// Make it zeros: nothing is stored there.
    Zero,
}

/// A range of a disk that a client has to bring up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where on the disk.
    pub range: ByteRange,
    /// What is there.
    pub kind: ChunkKind,
    /// Where its first byte is stored, as far as the file system tells.
    pub address: Option<PhysAddr>,
}

impl Chunk {
    /// The chunk that brings `range` to what `backing` says.
    pub fn of(range: ByteRange, backing: Backing) -> Self {
        let (kind, address) = match backing {
            Backing::Zero => (ChunkKind::Zero, None),
            Backing::Stored(address) => (ChunkKind::Data, Some(address)),
            Backing::Opaque => (ChunkKind::Data, None),
        };
        Self { range, kind, address }
    }

    /// The part of this chunk that lies in `range`, if any does.
    pub fn within(&self, range: ByteRange) -> Option<Self> {
        let start = self.range.start().max(range.start());
        let range = ByteRange::new(start, self.range.end().min(range.end()))?;
        let skipped = start - self.range.start();
        Some(Self { range, address: self.address.map(|address| address.advanced(skipped)), ..*self })
    }

    /// Whether `next` only goes on where this one stops, in the file and on the device.
    pub fn runs_on_in(&self, next: &Chunk) -> bool {
        match (self.kind, next.kind) {
            (ChunkKind::Zero, ChunkKind::Zero) => true,
            (ChunkKind::Data, ChunkKind::Data) => {
                self.address.map(|address| address.advanced(self.range.len())) == next.address
            }
            (ChunkKind::Data, ChunkKind::Zero) | (ChunkKind::Zero, ChunkKind::Data) => false,
        }
    }
}

/// Adds `next` to `chunks`, as part of the last one where it touches that and `joins` agrees.
fn append(chunks: &mut Vec<Chunk>, next: Chunk, joins: impl Fn(&Chunk, &Chunk) -> bool) {
    match chunks.last_mut() {
        Some(last) if last.range.end() == next.range.start() && joins(last, &next) => {
            last.range = last.range.joined(next.range);
        }
        _ => chunks.push(next),
    }
}

/// Adds `next`, joined to the last chunk where both are one run on the device.
pub fn append_run(chunks: &mut Vec<Chunk>, next: Chunk) {
    append(chunks, next, Chunk::runs_on_in);
}

/// Whether two chunks that touch are one where the address does not count. It is then the first one's.
pub fn is_one_kind(chunk: &Chunk, next: &Chunk) -> bool {
    chunk.kind == next.kind
}

/// Joins chunks of one kind that touch. Fills no gap.
pub fn squash(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut joined = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        append(&mut joined, chunk, is_one_kind);
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
    fn squashing_joins_what_touches_and_fills_no_gap() {
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
