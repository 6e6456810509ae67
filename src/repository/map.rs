//! Maps of snapshots' files, read when they are asked for and never from memory.
//!
//! A map that was stored goes stale: a defragmenter moves blocks, a freed address is given to
//! somebody else, and "same address" would no longer mean "same bytes".
//!
//! They are read window by window, so that memory does not grow with the extents.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::disk_file::{DiskFile, OpenError};
use crate::model::{Backing, ByteRange, Extent, ExtentMap, PhysAddr};
use crate::sys::{fiemap, fsinfo, sparse};

/// Why a map cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The file system's own error.
    #[error("reading the map of extents failed: {0}")]
    Io(#[from] io::Error),
    /// The answers of FIEMAP contradict themselves.
    #[error("the file system's map of extents makes no sense: {0}")]
    Inconsistent(String),
    /// The file is not the snapshot's, or no longer.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// How often a map is read anew where it moves under our hands.
pub(super) const MAX_READS: usize = 4;

/// What is asked of a file to make its map.
pub(super) trait ExtentSource {
    /// Adds to `page` the next extents that reach past `start`.
    fn page(&mut self, start: u64, page: &mut Vec<fiemap::RawExtent>) -> io::Result<()>;
    /// [`sparse::next_data`].
    fn next_data(&self, from: u64) -> io::Result<Option<u64>>;
    /// [`sparse::next_hole`].
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>>;
    /// Whether FIEMAP and `SEEK_DATA` are known to answer from one and the same place, so that only
    /// the end of a map has to be checked.
    fn holes_are_reliable(&self) -> bool;
    /// Checks that the file is still the one that was opened.
    fn verify(&self) -> Result<(), OpenError>;
}

/// A part of a file's map.
#[derive(Clone, Debug)]
pub(super) struct MapWindow {
    /// What stands from where it was asked for to `end`, and perhaps further.
    pub map: ExtentMap,
    /// Up to where the map is known.
    pub end: u64,
    /// Data that FIEMAP did not list, and `SEEK_DATA` did.
    unverified: Vec<ByteRange>,
}

impl MapWindow {
    /// Bytes of data in `window` that FIEMAP did not list.
    pub(super) fn unverified_in(&self, window: ByteRange) -> u64 {
        let within = |range: &ByteRange| {
            let start = range.start().max(window.start());
            range.end().min(window.end()).saturating_sub(start)
        };
        self.unverified.iter().map(within).sum()
    }
}

/// Reads the map of one file, from any offset on.
pub(super) struct MapWindows<S> {
    source: S,
    size: u64,
    page: Vec<fiemap::RawExtent>,
    /// Where the last extent of the last page ended.
    boundary: u64,
}

impl MapWindows<FileSource> {
    pub(super) fn of_file(file: Arc<DiskFile>) -> Result<Self, MapError> {
        let size = file.size();
        Ok(Self::new(FileSource::new(file)?, size))
    }
}

impl<S: ExtentSource> MapWindows<S> {
    pub(super) fn new(source: S, size: u64) -> Self {
        Self { source, size, page: Vec::new(), boundary: 0 }
    }

    /// The map from `start`, which is within the size, up to where one page of answers goes.
    ///
    /// What FIEMAP calls a hole is checked against `SEEK_DATA`: data there is taken as
    /// [`Backing::Opaque`], which is never "unchanged".
    pub(super) fn read_from(&mut self, start: u64) -> Result<MapWindow, MapError> {
        // Blocks that are moved between two answers make no sense together.
        for _ in 1..MAX_READS {
            match self.read_once(start) {
                Err(MapError::Inconsistent(problem)) => {
                    tracing::warn!(problem, "a map that makes no sense is read again")
                }
                read => return read,
            }
        }
        self.read_once(start)
    }

    /// Size of the file, bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Checks that the file is still the one that was opened.
    pub(super) fn verify(&self) -> Result<(), MapError> {
        Ok(self.source.verify()?)
    }

    fn read_once(&mut self, start: u64) -> Result<MapWindow, MapError> {
        let mut page = std::mem::take(&mut self.page);
        page.clear();
        self.source.page(start, &mut page)?;
        let window = self.assemble(start, &page);
        self.page = page;
        window
    }

    fn assemble(&mut self, start: u64, page: &[fiemap::RawExtent]) -> Result<MapWindow, MapError> {
        let mut extents = Vec::with_capacity(page.len());
        let (mut covered, mut unverified, mut last_seen) = (start, Vec::new(), page.is_empty());
        for raw in page {
            if last_seen {
                return Err(MapError::Inconsistent(format!("an extent at {} after the last one", raw.logical)));
            }
            let end = raw.logical.checked_add(raw.length);
            let Some(range) = end.and_then(|end| ByteRange::new(raw.logical, end)) else {
                return Err(MapError::Inconsistent(format!("{} bytes at {}", raw.length, raw.logical)));
            };
            // The first one may have begun before what was asked for, unless an extent ended there.
            let may_be_cut = extents.is_empty() && start != self.boundary && range.end() > start;
            if range.start() < covered && !may_be_cut {
                let text = format!("an extent at {} inside of one that ends at {covered}", range.start());
                return Err(MapError::Inconsistent(text));
            }
            if !self.source.holes_are_reliable() {
                self.add_unlisted_data(covered, range.start().min(self.size), &mut unverified, &mut extents)?;
            }
            let skipped = start.saturating_sub(range.start());
            let rest = ByteRange::new(range.start() + skipped, range.end());
            extents.extend(rest.map(|range| Extent { range, backing: backing(raw).advanced(skipped) }));
            covered = range.end();
            last_seen = raw.flags & fiemap::LAST != 0;
        }
        self.boundary = covered;
        if last_seen {
            self.add_unlisted_data(covered, self.size, &mut unverified, &mut extents)?;
            covered = self.size;
        }
        let map =
            ExtentMap::new(self.size, extents).map_err(|disorder| MapError::Inconsistent(disorder.to_string()))?;
        Ok(MapWindow { map, end: covered.min(self.size), unverified })
    }

    /// Adds the data that `SEEK_DATA` knows of between `from` and `to`, where FIEMAP knows of none.
    fn add_unlisted_data(
        &self,
        from: u64,
        to: u64,
        unverified: &mut Vec<ByteRange>,
        extents: &mut Vec<Extent>,
    ) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let Some(start) = self.source.next_data(at)?.filter(|start| *start < to) else { break };
            let end = self.source.next_hole(start)?.unwrap_or(to).clamp(start + 1, to);
            tracing::warn!(start, end, "data that FIEMAP does not list: taken as changed");
            let range = ByteRange::new(start, end);
            unverified.extend(range);
            extents.extend(range.map(|range| Extent { range, backing: Backing::Opaque }));
            at = end;
        }
        Ok(())
    }
}

/// Extents that are asked for at once where a map is read in one request, at most: 14 MiB of room.
const MAX_WHOLE_MAP: u32 = 1 << 18;

/// A snapshot's file as a source of its map.
pub(super) struct FileSource {
    file: Arc<DiskFile>,
    reader: fiemap::Reader,
    /// Whether every request is for the whole map. Older OCFS2 can lose extents where a request
    /// starts above 0. Where a map is larger than [`MAX_WHOLE_MAP`], what is lost is found by `SEEK_DATA`.
    whole: bool,
    holes_are_reliable: bool,
}

impl FileSource {
    fn new(file: Arc<DiskFile>) -> io::Result<Self> {
        let file_system = fsinfo::name_of(file.file())?;
        let (capacity, whole) = reader_capacity(file.file())?;
        let holes_are_reliable = file_system == "xfs";
        Ok(Self { file, reader: fiemap::Reader::new(capacity), whole, holes_are_reliable })
    }
}

/// Extents to ask for at a time, and whether each request is to be for the whole map.
///
/// Older OCFS2 can lose extents where a request starts above 0, so there the whole map is asked for at
/// once, up to [`MAX_WHOLE_MAP`].
pub(super) fn reader_capacity(file: &File) -> io::Result<(u32, bool)> {
    if fsinfo::name_of(file)? != "ocfs2" {
        return Ok((fiemap::EXTENTS_PER_CALL, false));
    }
    // One more, as a sign that there were no more.
    let count = fiemap::Reader::count(file.as_fd())?.saturating_add(1);
    Ok((count.clamp(fiemap::EXTENTS_PER_CALL, MAX_WHOLE_MAP), count <= MAX_WHOLE_MAP))
}

impl ExtentSource for FileSource {
    fn page(&mut self, start: u64, page: &mut Vec<fiemap::RawExtent>) -> io::Result<()> {
        let from = if self.whole { 0 } else { start };
        let extents = self.reader.read(self.file.file().as_fd(), from)?;
        let passed = extents.partition_point(|raw| raw.logical.saturating_add(raw.length) <= start);
        page.extend_from_slice(if self.whole { &extents[passed..] } else { extents });
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        sparse::next_data(self.file.file(), from)
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        sparse::next_hole(self.file.file(), from)
    }

    fn holes_are_reliable(&self) -> bool {
        self.holes_are_reliable
    }

    fn verify(&self) -> Result<(), OpenError> {
        self.file.verify()
    }
}

/// The flags under which an address still stands for its content. Any other, also one that a later
/// kernel invents, says compressed, inline, not yet placed, or something that we do not know.
pub(super) const TRUSTED_FLAGS: u32 = fiemap::LAST | fiemap::UNWRITTEN | fiemap::MERGED | fiemap::SHARED;

fn backing(raw: &fiemap::RawExtent) -> Backing {
    if raw.flags & !TRUSTED_FLAGS != 0 {
        Backing::Opaque
    } else if raw.flags & fiemap::UNWRITTEN != 0 {
        Backing::Zero
    } else if raw.physical == 0 || raw.physical.checked_add(raw.length).is_none() {
        // Where no data can be; some file systems say 0 of what has no address.
        Backing::Opaque
    } else {
        Backing::Stored(PhysAddr(raw.physical))
    }
}

#[cfg(test)]
#[path = "map/tests.rs"]
mod tests;
