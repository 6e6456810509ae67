//! Extent maps of snapshots' files. They are read when they are needed, and never stored.
//!
//! A stored map goes stale: a defragmenter moves blocks, freed addresses are reused, and equal addresses no longer mean
//! equal bytes.
//!
//! A map is read window by window, so memory does not grow with the number of extents.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::disk_file::{DiskFile, OpenError};
use crate::model::{Backing, ByteRange, Extent, ExtentMap, PhysAddr};
use crate::sys::{fiemap, fsinfo, sparse};

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("reading the extent map failed: {0}")]
    Io(#[from] io::Error),
    /// The answers of FIEMAP contradict each other.
    #[error("the file system's extent map contradicts itself: {0}")]
    Inconsistent(String),
    /// The file is not the snapshot's, or no longer.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// How often a window is read if blocks move meanwhile.
pub(super) const MAX_READS: usize = 4;

/// The calls that make a file's map.
pub trait ExtentSource {
    /// Appends the next extents that reach past `start`.
    fn page(&mut self, start: u64, page: &mut Vec<fiemap::RawExtent>) -> io::Result<()>;
    /// See [`sparse::next_data`].
    fn next_data(&self, from: u64) -> io::Result<Option<u64>>;
    /// See [`sparse::next_hole`].
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>>;
    /// Whether FIEMAP and `SEEK_DATA` are known to use the same source. Then only the end of the map has to be checked.
    fn holes_are_reliable(&self) -> bool;
    /// Checks that the file has not changed since it was opened.
    fn verify(&self) -> Result<(), OpenError>;
}

/// A part of a file's map.
#[derive(Clone, Debug)]
pub(super) struct MapWindow {
    /// Complete from the offset of the request to `end`.
    pub map: ExtentMap,
    pub end: u64,
    /// Data that `SEEK_DATA` found and FIEMAP did not list.
    unverified: Vec<ByteRange>,
}

impl MapWindow {
    /// Bytes of data in `range` that FIEMAP did not list.
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

    /// The map from `start`, which must be within the size, to the end of one page of extents.
    ///
    /// Holes are checked with `SEEK_DATA`. Data that it finds there becomes [`Backing::Opaque`], which never counts as
    /// unchanged.
    pub(super) fn read_from(&mut self, start: u64) -> Result<MapWindow, MapError> {
        // Answers contradict each other if blocks moved between them.
        for _ in 1..MAX_READS {
            match self.read_once(start) {
                Err(MapError::Inconsistent(problem)) => {
                    tracing::warn!(problem, "the extent map contradicts itself; reading it again")
                }
                read => return read,
            }
        }
        self.read_once(start)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Checks that the file has not changed since it was opened.
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
            // The first extent may begin before `start`, unless the last page ended there.
            let may_be_cut = extents.is_empty() && start != self.boundary && range.end() > start;
            if range.start() < covered && !may_be_cut {
                let text = format!("an extent at {} inside one that ends at {covered}", range.start());
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

    /// Adds data that `SEEK_DATA` finds between `from` and `to`, where FIEMAP listed none.
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
            tracing::warn!(start, end, "FIEMAP does not list this data; treating it as changed");
            let range = ByteRange::new(start, end);
            unverified.extend(range);
            extents.extend(range.map(|range| Extent { range, backing: Backing::Opaque }));
            at = end;
        }
        Ok(())
    }
}

/// The most extents that are read in one request: a buffer of 14 MiB.
const MAX_WHOLE_MAP: u32 = 1 << 18;

/// A snapshot's file as the source of its map.
pub(super) struct FileSource {
    file: Arc<DiskFile>,
    reader: fiemap::Reader,
    /// Whether each request reads the whole map. See [`reader_capacity`].
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

/// How many extents to read at a time, and whether each request must read the whole map.
///
/// Older OCFS2 can lose extents in a request that starts above 0. There each request reads the whole map, up to
/// [`MAX_WHOLE_MAP`] extents. In larger maps `SEEK_DATA` finds what is lost.
pub(super) fn reader_capacity(file: &File) -> io::Result<(u32, bool)> {
    if fsinfo::name_of(file)? != "ocfs2" {
        return Ok((fiemap::EXTENTS_PER_CALL, false));
    }
    // One more, which stays free: a sign that the answer is complete.
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

/// The flags with which an address still identifies content. All others, also those of later kernels, may mean
/// compressed, inline, or not yet placed.
pub(super) const TRUSTED_FLAGS: u32 = fiemap::LAST | fiemap::UNWRITTEN | fiemap::MERGED | fiemap::SHARED;

fn backing(raw: &fiemap::RawExtent) -> Backing {
    if raw.flags & !TRUSTED_FLAGS != 0 {
        Backing::Opaque
    } else if raw.flags & fiemap::UNWRITTEN != 0 {
        Backing::Zero
    } else if raw.physical == 0 || raw.physical.checked_add(raw.length).is_none() {
        // Some file systems report address 0 for data without an address.
        Backing::Opaque
    } else {
        Backing::Stored(PhysAddr(raw.physical))
    }
}

#[cfg(test)]
#[path = "map/tests.rs"]
mod tests;
