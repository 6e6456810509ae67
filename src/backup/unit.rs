//! A unit of a disk: how it is written, hashed, and read back.

use std::ops::Range;

use super::blocks::{self, BLOCK, Blocks, Digest};
use super::disk::Disk;
use super::error::{AtPath, Result};
use super::image::Image;
use super::journal::Record;
use super::plan::UNIT;

/// Units of this size are written out at once. Small ones wait for their neighbours.
const WRITE_OUT_BYTES: u64 = 256 << 10;

/// A unit that is being written, one block or part of a block after the other: while a block is in the processor's cache,
/// it is hashed and copied.
pub struct Unit {
    leaves: Leaves,
    /// Zeros at its end that are not in the image yet.
    zeros: Range<u64>,
}

impl Unit {
    pub fn new(start: u64) -> Self {
        Self { leaves: Leaves::new(start), zeros: start..start }
    }

    /// Writes the next bytes, which lie in one block.
    pub fn write(&mut self, disk: &Disk, bytes: &[u8]) -> Result<()> {
        let start = self.leaves.end;
        let is_zero = self.leaves.push(disk.size, bytes) == blocks::ZERO_ENTRY;
        let end = self.leaves.end;
        if is_zero {
            self.zeros.end = end;
            return Ok(());
        }
        self.write_zeros(disk)?;
        self.zeros = end..end;
        disk.image.write(start, bytes).at(&disk.file)
    }

    /// Writes the checksums of the blocks that lie within the unit.
    pub fn finish(self, disk: &Disk) -> Result<Record> {
        self.write_zeros(disk)?;
        let range = self.leaves.start..self.leaves.end;
        if range.end - range.start >= WRITE_OUT_BYTES {
            disk.image.start_write_out(&range);
        }
        self.leaves.write(&disk.blocks)?;
        Ok(Record { range, digest: self.leaves.digest() })
    }

    fn write_zeros(&self, disk: &Disk) -> Result<()> {
        if self.zeros.is_empty() { Ok(()) } else { disk.image.zero(&self.zeros).at(&disk.file) }
    }
}

/// The entries of the blocks and parts of blocks of a range.
struct Leaves {
    start: u64,
    end: u64,
    entries: Vec<Digest>,
    /// The first block that lies within the range, and the entries of all such blocks.
    first: u64,
    whole: Vec<Digest>,
}

impl Leaves {
    fn new(start: u64) -> Self {
        Self { start, end: start, entries: Vec::new(), first: 0, whole: Vec::new() }
    }

    fn of(size: u64, start: u64, mut bytes: &[u8]) -> Self {
        let mut leaves = Self::new(start);
        while !bytes.is_empty() {
            let (part, later) = bytes.split_at(bytes.len().min((block_end(leaves.end) - leaves.end) as usize));
            leaves.push(size, part);
            bytes = later;
        }
        leaves
    }

    /// Adds the next bytes, which lie in one block, of a disk of `size` bytes. Returns their entry.
    fn push(&mut self, size: u64, bytes: &[u8]) -> Digest {
        let entry = blocks::entry(bytes);
        let (start, end) = (self.end, self.end + bytes.len() as u64);
        if start.is_multiple_of(BLOCK) && (end == block_end(start) || end == size) {
            if self.whole.is_empty() {
                self.first = start / BLOCK;
            }
            self.whole.push(entry);
        }
        self.entries.push(entry);
        self.end = end;
        entry
    }

    fn write(&self, blocks: &Blocks) -> Result<()> {
        if self.whole.is_empty() { Ok(()) } else { blocks.write(self.first, &self.whole) }
    }

    /// The digest of the range: the BLAKE3 of the entries.
    fn digest(&self) -> Digest {
        *blake3::hash(self.entries.as_flattened()).as_bytes()
    }
}

/// The end of the block that has the byte at `at`.
pub fn block_end(at: u64) -> u64 {
    (at / BLOCK + 1) * BLOCK
}

/// Reads back what the journal says is done.
pub struct Recall<'a> {
    image: &'a Image,
    blocks: &'a Blocks,
    size: u64,
    buffer: Vec<u8>,
    done: Vec<Range<u64>>,
}

impl<'a> Recall<'a> {
    pub fn new(image: &'a Image, blocks: &'a Blocks, size: u64) -> Self {
        Self { image, blocks, size, buffer: vec![0; UNIT as usize], done: Vec::new() }
    }

    pub fn check(&mut self, Record { range, digest }: Record) -> Result<()> {
        let bytes = &mut self.buffer[..(range.end - range.start) as usize];
        // A range of an older plan has no place in this image.
        if self.image.read(range.start, bytes).is_err() {
            return Ok(());
        }
        let leaves = Leaves::of(self.size, range.start, bytes);
        if leaves.digest() == digest {
            leaves.write(self.blocks)?;
            match self.done.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.done.push(range),
            }
        }
        Ok(())
    }

    /// The ranges that are there, in order and disjoint.
    pub fn finish(self) -> Vec<Range<u64>> {
        let mut done = self.done;
        done.sort_by_key(|range| range.start);
        done.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        done
    }
}
