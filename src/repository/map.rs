//! Maps of snapshots' files, read when they are asked for and never from memory.
//!
//! A map that was stored goes stale: a defragmenter moves blocks, a freed address is given to
//! somebody else, and "same address" would no longer mean "same bytes".

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

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
    Nonsense(String),
    /// The file is not the snapshot's, or no longer.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// Why two files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The base is not what was snapshotted.
    #[error("the base cannot be trusted: {0}")]
    Base(MapError),
    /// The target is not what was snapshotted.
    #[error("the target cannot be trusted: {0}")]
    Target(MapError),
    /// Blocks of the base are being moved.
    #[error("the blocks of the base keep moving; is a defragmenter running?")]
    Unsettled,
}

/// The two maps of a comparison.
#[derive(Debug)]
pub struct Maps {
    /// The older file's.
    pub base: ExtentMap,
    /// The newer file's.
    pub target: ExtentMap,
}

/// How often a map is read anew where it moves under our hands.
const ATTEMPTS: usize = 4;

/// Reads the maps of two files so that equal addresses mean equal bytes, or fails.
///
/// The base is read before and after the target: only where both readings agree did each address
/// of it belong to it while the target was read. Nothing is returned where the files lie on two
/// devices, whose addresses have nothing to do with each other.
///
/// # Errors
/// [`CompareError`].
pub fn read_both(base: &DiskFile, target: &DiskFile) -> Result<Option<Maps>, CompareError> {
    let device = |file: &DiskFile| file.device().map_err(MapError::from);
    if device(base).map_err(CompareError::Base)? != device(target).map_err(CompareError::Target)? {
        return Ok(None);
    }
    let mut before = read(base).map_err(CompareError::Base)?;
    for _ in 0..ATTEMPTS {
        let target = read(target).map_err(CompareError::Target)?;
        let after = read(base).map_err(CompareError::Base)?;
        if before == after {
            return Ok(Some(Maps { base: after, target }));
        }
        before = after;
    }
    Err(CompareError::Unsettled)
}

/// Reads the map of a snapshot's file.
///
/// # Errors
/// [`MapError`]; also where the file was touched meanwhile.
pub fn read(disk: &DiskFile) -> Result<ExtentMap, MapError> {
    // Blocks that are moved between two pages of answers make no sense together.
    for _ in 1..ATTEMPTS {
        match read_once(disk) {
            Err(MapError::Nonsense(problem)) => tracing::warn!(problem, "a map that makes no sense is read again"),
            read => return read,
        }
    }
    read_once(disk)
}

fn read_once(disk: &DiskFile) -> Result<ExtentMap, MapError> {
    let mut reader = fiemap::Reader::new(room(disk.file())?);
    let map = collect(
        disk.size(),
        |start, page| {
            page.extend_from_slice(reader.read(disk.file().as_fd(), start)?);
            Ok(())
        },
        |from| sparse::next_data(disk.file(), from),
        |from| sparse::next_hole(disk.file(), from),
    )?;
    disk.verify()?;
    Ok(map)
}

/// Extents to ask for at a time.
///
/// Older OCFS2 can lose extents where a request starts above 0. So the whole map is asked for at
/// once there, up to a bound of 14 MiB; past that, what is lost is found by [`collect`].
pub(super) fn room(file: &File) -> io::Result<u32> {
    const BOUND: u32 = 1 << 18;
    if fsinfo::name_of(file)? != "ocfs2" {
        return Ok(fiemap::PAGE);
    }
    // One more, as a sign that there were no more.
    Ok(fiemap::Reader::count(file.as_fd())?.saturating_add(1).clamp(fiemap::PAGE, BOUND))
}

/// The flags under which an address still stands for its content. Any other, also one that a later
/// kernel invents, says compressed, inline, not yet placed, or something that we do not know.
pub(super) const TRUSTED: u32 = fiemap::LAST | fiemap::UNWRITTEN | fiemap::MERGED | fiemap::SHARED;

fn backing(raw: &fiemap::RawExtent) -> Backing {
    if raw.flags & !TRUSTED != 0 {
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

/// Puts a map together from what the kernel answers.
///
/// `page(start, out)` adds to `out` the next extents that reach past `start`; `next_data` and
/// `next_hole` are [`sparse`]'s. What FIEMAP calls a hole is checked against `SEEK_DATA`: data
/// there is taken as [`Backing::Opaque`], which is never "unchanged".
fn collect(
    size: u64,
    mut page: impl FnMut(u64, &mut Vec<fiemap::RawExtent>) -> io::Result<()>,
    next_data: impl Fn(u64) -> io::Result<Option<u64>>,
    next_hole: impl Fn(u64) -> io::Result<Option<u64>>,
) -> Result<ExtentMap, MapError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut raws = Vec::new();
    let mut covered = 0;
    // Data that SEEK_DATA knows of between `from` and `to`, where FIEMAP knows of none.
    let unmapped = |from: u64, to: u64, extents: &mut Vec<Extent>| -> io::Result<()> {
        let mut at = from;
        while at < to {
            let Some(start) = next_data(at)?.filter(|start| *start < to) else { break };
            let end = next_hole(start)?.unwrap_or(to).clamp(start + 1, to);
            tracing::warn!(start, end, "data that FIEMAP does not list: taken as changed");
            extents.extend(ByteRange::new(start, end).map(|range| Extent { range, backing: Backing::Opaque }));
            at = end;
        }
        Ok(())
    };
    let mut last_seen = false;
    while !last_seen && covered < size {
        raws.clear();
        page(covered, &mut raws)?;
        if raws.is_empty() {
            break;
        }
        for raw in &raws {
            if last_seen {
                return Err(MapError::Nonsense(format!("an extent at {} after the last one", raw.logical)));
            }
            let end = raw.logical.checked_add(raw.length);
            let Some(range) = end.and_then(|end| ByteRange::new(raw.logical, end)) else {
                return Err(MapError::Nonsense(format!("{} bytes at {}", raw.length, raw.logical)));
            };
            if range.start() < covered {
                return Err(MapError::Nonsense(format!(
                    "an extent at {} inside of one that ends at {covered}",
                    range.start()
                )));
            }
            unmapped(covered, range.start().min(size), &mut extents)?;
            covered = range.end();
            last_seen = raw.flags & fiemap::LAST != 0;
            extents.push(Extent { range, backing: backing(raw) });
        }
    }
    unmapped(covered, size, &mut extents)?;
    ExtentMap::new(size, extents).map_err(|disorder| MapError::Nonsense(disorder.to_string()))
}

#[cfg(test)]
#[path = "map/tests.rs"]
mod tests;
