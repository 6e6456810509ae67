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
    append(chunks, next, Chunk::continues_in);
}

/// Whether two chunks that touch are one where the address does not count. It is then the first one's.
pub fn same_kind(chunk: &Chunk, next: &Chunk) -> bool {
    chunk.kind == next.kind
}

/// Joins chunks of one kind that touch. Fills no gap.
pub fn squash(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut joined = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        append(&mut joined, chunk, same_kind);
    }
    joined
}

/// Joins chunks, as they come, that touch and that `joins` agrees to.
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
