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

/// Writes a unit, and the checksums of the blocks that lie within it. Returns its digest.
pub fn write(disk: &Disk, start: u64, bytes: &[u8]) -> Result<Digest> {
    let leaves = Leaves::of(disk.size, start, bytes);
    let mut written = 0;
    for (range, is_zero) in leaves.runs(start) {
        let length = (range.end - range.start) as usize;
        if is_zero {
            disk.image.zero(&range).at(&disk.file)?;
        } else {
            disk.image.write(range.start, &bytes[written..written + length]).at(&disk.file)?;
        }
        written += length;
    }
    if bytes.len() as u64 >= WRITE_OUT_BYTES {
        disk.image.start_write_out(&(start..start + bytes.len() as u64));
    }
    leaves.write(&disk.blocks)?;
    Ok(leaves.digest())
}

/// The parts of a unit in each block, and their entries.
struct Leaves {
    /// The length of each part, and its entry.
    parts: Vec<(u64, Digest)>,
    /// The first block that lies within the unit, and the entries of all such blocks.
    first: u64,
    whole: Vec<Digest>,
}

impl Leaves {
    fn of(size: u64, start: u64, bytes: &[u8]) -> Self {
        let mut parts = Vec::new();
        let (mut first, mut whole) = (0, Vec::new());
        let mut at = start;
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = (at / BLOCK + 1) * BLOCK;
            let (part, later) = rest.split_at(rest.len().min((end - at) as usize));
            let entry = blocks::entry(part);
            let part_end = at + part.len() as u64;
            if at.is_multiple_of(BLOCK) && (part_end == end || part_end == size) {
                if whole.is_empty() {
                    first = at / BLOCK;
                }
                whole.push(entry);
            }
            parts.push((part.len() as u64, entry));
            (at, rest) = (part_end, later);
        }
        Self { parts, first, whole }
    }

    /// The ranges of zeros, and of other bytes.
    fn runs(&self, start: u64) -> Vec<(Range<u64>, bool)> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut at = start;
        for (length, entry) in &self.parts {
            let is_zero = *entry == blocks::ZERO_ENTRY;
            match runs.last_mut() {
                Some((range, zero)) if *zero == is_zero => range.end += length,
                _ => runs.push((at..at + length, is_zero)),
            }
            at += length;
        }
        runs
    }

    fn write(&self, blocks: &Blocks) -> Result<()> {
        if self.whole.is_empty() { Ok(()) } else { blocks.write(self.first, &self.whole) }
    }

    /// The digest of the unit: the BLAKE3 of its parts' entries.
    fn digest(&self) -> Digest {
        let entries: Vec<Digest> = self.parts.iter().map(|(_, entry)| *entry).collect();
        *blake3::hash(entries.as_flattened()).as_bytes()
    }
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
