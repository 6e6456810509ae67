//! Finds which file of a chain has which bytes, from the start of a disk to its end.

use super::chain_file::ChainFile;
use super::error::ImageError;
use super::run::Content;
use super::tables::{Extent, Place};
use crate::model::ByteRange;

/// What some files of a chain have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Data,
    Zero,
    /// The files below them decide.
    Below,
}

/// Where the bytes from a position on are.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The position of the disk where this ends.
    pub end: u64,
    pub source: Source,
}

#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// In the file with this number, at this offset.
    Stored {
        file: usize,
        offset: u64,
    },
    Zero,
    Below,
}

/// Remembers the last extent of each file. So each extent is looked up once if the positions ascend.
#[derive(Debug)]
pub struct Walk<'a> {
    /// The newest first.
    files: &'a [ChainFile],
    /// Whether there are files below these.
    more_below: bool,
    /// Whether the holes of raw files are found out. Each look can cost the file system a walk over many extents.
    finds_holes: bool,
    extents: Vec<Extent>,
}

impl<'a> Walk<'a> {
    /// A walk over the newest `count` of the files.
    pub fn new(files: &'a [ChainFile], count: usize) -> Self {
        let (files, below) = files.split_at(count.min(files.len()));
        Self { files, more_below: !below.is_empty(), finds_holes: true, extents: Vec::new() }
    }

    /// A walk that reads: a hole of a raw file is read like data.
    pub fn to_read(files: &'a [ChainFile]) -> Self {
        Self { finds_holes: false, ..Self::new(files, files.len()) }
    }

    /// Where the bytes from `at` on are, at most to `until`, which must be greater and within the size of the newest
    /// disk.
    pub fn find(&mut self, at: u64, until: u64) -> Result<Found, ImageError> {
        let mut end = until;
        for (number, file) in self.files.iter().enumerate() {
            // A disk that is larger than its backing file has zeros behind it.
            if at >= file.size {
                return Ok(Found { end, source: Source::Zero });
            }
            let extent = self.extent(number, file, at)?;
            end = end.min(extent.range.end);
            let source = match extent.place {
                Place::Stored(offset) => Source::Stored { file: number, offset: offset + (at - extent.range.start) },
                Place::Zero => Source::Zero,
                Place::Below => continue,
            };
            return Ok(Found { end, source });
        }
        Ok(Found { end, source: if self.more_below { Source::Below } else { Source::Zero } })
    }

    fn extent(&mut self, number: usize, file: &ChainFile, at: u64) -> Result<&Extent, ImageError> {
        if number == self.extents.len() {
            self.extents.push(file.extent_at(at, self.finds_holes)?);
        } else if !self.extents[number].range.contains(&at) {
            self.extents[number] = file.extent_at(at, self.finds_holes)?;
        }
        Ok(&self.extents[number])
    }
}

/// The parts of a disk, adjacent equal ones joined. Ends after an error.
#[derive(Debug)]
pub struct Parts<'a> {
    walk: Walk<'a>,
    at: u64,
    size: u64,
}

impl<'a> Parts<'a> {
    pub fn new(walk: Walk<'a>, from: u64) -> Self {
        let size = walk.files.first().map_or(0, |file| file.size);
        Self { walk, at: from, size }
    }

    fn next_part(&mut self) -> Result<Option<(ByteRange, Part)>, ImageError> {
        let (start, mut joined) = (self.at, None);
        while self.at < self.size {
            let found = self.walk.find(self.at, self.size)?;
            let part = match found.source {
                Source::Stored { .. } => Part::Data,
                Source::Zero => Part::Zero,
                Source::Below => Part::Below,
            };
            if joined.is_some_and(|joined| joined != part) {
                break;
            }
            joined = Some(part);
            self.at = found.end;
        }
        Ok(ByteRange::new(start, self.at).zip(joined))
    }
}

impl Iterator for Parts<'_> {
    type Item = Result<(ByteRange, Part), ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_part();
        if next.is_err() {
            self.at = self.size;
        }
        next.transpose()
    }
}

/// What a whole chain has: nothing is below it.
pub fn content(part: (ByteRange, Part)) -> (ByteRange, Content) {
    match part {
        (range, Part::Data) => (range, Content::Data),
        (range, Part::Zero | Part::Below) => (range, Content::Zero),
    }
}
