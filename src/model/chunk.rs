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
pub fn squash(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut joined = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        append(&mut joined, chunk, same_kind);
    }
    joined
}

/// Joins consecutive chunks of a stream that touch and that `joins` agrees to.
pub fn joined<E>(
    chunks: impl Iterator<Item = Result<Chunk, E>>,
    joins: fn(&Chunk, &Chunk) -> bool,
) -> impl Iterator<Item = Result<Chunk, E>> {
    let mut chunks = chunks.fuse();
    let mut held: Option<Chunk> = None;
    let mut failed = None;
    std::iter::from_fn(move || {
        if let Some(error) = failed.take() {
            return Some(Err(error));
        }
        loop {
            match (chunks.next(), held.take()) {
                (None, None) => return None,
                (None, Some(last)) => return Some(Ok(last)),
                (Some(Err(error)), None) => return Some(Err(error)),
                (Some(Err(error)), Some(last)) => {
                    failed = Some(error);
                    return Some(Ok(last));
                }
                (Some(Ok(next)), None) => held = Some(next),
                (Some(Ok(next)), Some(last)) if last.range.end() == next.range.start() && joins(&last, &next) => {
                    held = Some(Chunk { range: last.range.joined(next.range), ..last });
                }
                (Some(Ok(next)), Some(last)) => {
                    held = Some(next);
                    return Some(Ok(last));
                }
            }
        }
    })
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
