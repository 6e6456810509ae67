//! Where everything is in an image, decided before the first byte is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Format, MAX_NAME, MAX_REFCOUNT_TABLE, MAX_TABLE, SECTOR};
use super::image::Image;
use super::run::{Allocation, Content, Run, Span, SpanKind};
use super::tables::ENTRY_LEN;
use crate::model::ByteRange;

/// The sizes of clusters that are used, smallest first. Smaller ones copy less around a scattered change; larger ones
/// need fewer tables.
const CLUSTER_BITS: [u32; 3] = [12, 14, 16];
/// Refcounts of 16 bits, QEMU's default.
const REFCOUNT_LEN: u64 = 2;

/// The image or raw file that has the bytes that an image has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Relative to the folder of the image.
    pub file: String,
    pub format: Format,
    /// Of its disk, bytes.
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    #[error("the run at {start} starts before the one ahead of it ends, at {previous_end}")]
    UnorderedRuns { start: u64, previous_end: u64 },
    #[error("a run ends at {end}, past the end of the disk, {size}")]
    PastTheEnd { end: u64, size: u64 },
    #[error("a disk of {size} bytes is too large for a qcow2 image; the largest has 2 PiB")]
    TooLarge { size: u64 },
    #[error(
        "{0:?} cannot name a backing file: use a relative path of at most 1,023 bytes without control characters, \
         and ./ ahead of a name with a colon"
    )]
    BackingName(String),
}

/// An image that is to be written: a pure function of its input. An interrupted image is continued by making its layout
/// again.
#[derive(Debug)]
pub struct Layout {
    /// Of the disk, a multiple of [`SECTOR`].
    pub(super) size: u64,
    pub(super) backing: Option<Backing>,
    /// In order. Neighbours with the same content are joined. Zeros that need no mark are left out.
    runs: Vec<Run>,
    /// Where the bytes of the backing file end. Behind it, everything reads as zeros without a mark.
    limit: u64,
    pub(super) regions: Regions,
}

/// Bytes of an image that come from its backing file.
struct Gap {
    guest: ByteRange,
    /// Offset in the file.
    place: u64,
}

impl Layout {
    /// The layout of a disk of `size` bytes. `runs` are in order and disjoint; their bytes need no alignment. Outside of
    /// them the disk has the bytes of `backing`, and zeros where that has none.
    ///
    /// QEMU counts in sectors of 512 bytes, so the size is rounded up. The bytes that this adds are zeros.
    pub fn new(
        size: u64,
        runs: impl IntoIterator<Item = (ByteRange, Content)>,
        backing: Option<Backing>,
    ) -> Result<Self, BadLayout> {
        Self::with_clusters(size, runs, backing, &CLUSTER_BITS)
    }

    /// A layout with clusters of one of these sizes, 9 to 21 bits. For tests.
    pub fn with_clusters(
        size: u64,
        runs: impl IntoIterator<Item = (ByteRange, Content)>,
        backing: Option<Backing>,
        cluster_bits: &[u32],
    ) -> Result<Self, BadLayout> {
        if let Some(backing) = &backing {
            check_name(&backing.file)?;
        }
        let disk_size = size.checked_next_multiple_of(SECTOR).ok_or(BadLayout::TooLarge { size })?;
        let limit = backing.as_ref().map_or(0, |backing| backing.size.min(disk_size));
        let mut runs = needed_runs(size, limit, runs)?;
        if let Some(added) = ByteRange::new(size, limit) {
            push(&mut runs, Run::new(added, Content::Zero));
        }
        runs.shrink_to_fit();

        let fitting = cluster_bits.iter().filter_map(|bits| Regions::new(*bits, disk_size, &runs, limit));
        // Without a backing file, the bytes of a cluster that no run covers are holes and need no space.
        let regions = fitting.min_by_key(|regions| regions.space(backing.is_some()));
        let regions = regions.ok_or(BadLayout::TooLarge { size })?;
        let mut allocation = Allocation::new(regions.cluster(), limit);
        for index in 0..runs.len() {
            let before = allocation.before(&runs[index]);
            runs[index].set_allocated_before(before);
            allocation.spans(&runs[index], runs.get(index + 1)).for_each(drop);
        }
        Ok(Self { size: disk_size, backing, runs, limit, regions })
    }

    /// Of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the finished file, with its holes.
    pub fn file_len(&self) -> u64 {
        self.regions.end
    }

    /// Bytes.
    pub fn cluster_size(&self) -> u64 {
        self.regions.cluster()
    }

    /// The offset in the file of a range that is part of one or several adjacent data runs.
    pub fn place(&self, range: ByteRange) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.start <= range.start()).checked_sub(1)?;
        let (run, cluster) = (&self.runs[index], self.cluster_size());
        let number = run.allocated_before() + range.start() / cluster - run.start / cluster;
        let inside = run.is_data() && range.end() <= run.end;
        inside.then(|| self.place_in(number, range.start()))
    }

    /// Writes bytes of the disk, which must be part of data runs. Several threads may write at once, in any order.
    pub fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(range) = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64)) else { return Ok(()) };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, format!("{range:?} is outside of the data runs"));
        file.write_all_at(bytes, self.place(range).ok_or_else(outside)?)
    }

    /// The ranges that no run covers, but that are in allocated clusters and must have the bytes of the backing file. In
    /// order; neighbours are not joined. All other bytes outside of the runs are zeros, which holes of the file are too.
    pub fn gaps(&self) -> impl Iterator<Item = ByteRange> {
        self.located_gaps().map(|gap| gap.guest)
    }

    /// Copies the gaps from `backing`, which is needed if there is a gap.
    pub fn fill_gaps(&self, file: &File, backing: Option<&Image>) -> io::Result<()> {
        let mut buffer = vec![0; self.cluster_size() as usize];
        for Gap { guest, place } in self.located_gaps() {
            let size = self.backing.as_ref().map_or(0, |backing| backing.size.next_multiple_of(SECTOR));
            let fits = |image: &&Image| image.size().next_multiple_of(SECTOR) == size;
            let Some(backing) = backing.filter(fits) else {
                let problem = format!("the image needs its backing file, with a disk of {size} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            };
            let bytes = &mut buffer[..guest.len() as usize];
            backing.read_at(guest.start(), bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(bytes, place)?;
            }
        }
        Ok(())
    }

    /// The clusters that have entries in the tables, in order.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> {
        spans(self.cluster_size(), self.limit, &self.runs)
    }

    /// A gap is the end of a cluster behind a run, or the start of one ahead of a run.
    fn located_gaps(&self) -> impl Iterator<Item = Gap> {
        let cluster = self.cluster_size();
        (0..=self.runs.len()).flat_map(move |index| {
            let previous = index.checked_sub(1).map(|index| &self.runs[index]);
            let next = self.runs.get(index);
            let start = previous.map_or(0, |run| run.end);
            let end = next.map_or(self.limit, |run| run.start.min(self.limit));
            let middle = start.next_multiple_of(cluster).min(end);
            let behind = previous.zip(ByteRange::new(start, middle)).map(|(run, guest)| {
                let last = run.allocated_before() + run.allocated_to_its_last(cluster);
                Gap { guest, place: self.place_in(last, guest.start()) }
            });
            let ahead = next.and_then(|run| {
                let aligned = run.start - run.start % cluster;
                let guest = ByteRange::new(aligned.max(middle), end)?;
                Some(Gap { guest, place: self.place_in(run.allocated_before(), guest.start()) })
            });
            [behind, ahead].into_iter().flatten()
        })
    }

    /// The offset in the file of a byte of the disk that is in the allocated cluster with this number.
    fn place_in(&self, number: u64, guest: u64) -> u64 {
        let cluster = self.cluster_size();
        self.regions.data + number * cluster + guest % cluster
    }
}

/// The regions of the file, in this order, each at the start of a cluster. The header is ahead of them.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub cluster_bits: u32,
    pub l1_entries: u64,
    pub refcount_blocks: u64,
    pub l1: u64,
    pub refcount_table: u64,
    pub refcounts: u64,
    pub l2: u64,
    pub data: u64,
    pub end: u64,
}

impl Regions {
    /// `None` if QEMU would refuse a table as too large.
    fn new(cluster_bits: u32, size: u64, runs: &[Run], limit: u64) -> Option<Self> {
        let cluster = 1 << cluster_bits;
        let l1_entries = size.div_ceil(cluster * (cluster / ENTRY_LEN));
        if l1_entries * ENTRY_LEN > MAX_TABLE {
            return None;
        }
        let (mut data_clusters, mut tables, mut next_table) = (0, 0, 0);
        for Span { clusters, kind } in spans(cluster, limit, runs) {
            if matches!(kind, SpanKind::Allocated(_)) {
                data_clusters += clusters.end - clusters.start;
            }
            let per_table = cluster / ENTRY_LEN;
            let end_table = clusters.end.div_ceil(per_table);
            tables += end_table - next_table.max(clusters.start / per_table);
            next_table = end_table;
        }
        let l1_clusters = (l1_entries * ENTRY_LEN).div_ceil(cluster);
        // The refcounts count their own clusters too.
        let (mut table_clusters, mut blocks) = (1, 1);
        loop {
            let clusters = 1 + l1_clusters + table_clusters + blocks + tables + data_clusters;
            let needed = clusters.div_ceil(cluster / REFCOUNT_LEN);
            if needed <= blocks && (blocks * ENTRY_LEN).div_ceil(cluster) <= table_clusters {
                break;
            }
            blocks = needed.max(blocks);
            table_clusters = (blocks * ENTRY_LEN).div_ceil(cluster);
        }
        let l1 = cluster;
        let refcount_table = l1 + l1_clusters * cluster;
        let refcounts = refcount_table + table_clusters * cluster;
        let l2 = refcounts + blocks * cluster;
        let data = l2 + tables * cluster;
        let end = data + data_clusters * cluster;
        let fits = table_clusters * cluster <= MAX_REFCOUNT_TABLE;
        fits.then_some(Self {
            cluster_bits,
            l1_entries,
            refcount_blocks: blocks,
            l1,
            refcount_table,
            refcounts,
            l2,
            data,
            end,
        })
    }

    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Of the refcount table, bytes.
    pub fn refcount_table_len(&self) -> u64 {
        self.refcounts - self.refcount_table
    }

    /// About the bytes that the file uses. Most of an L1 table is a hole.
    fn space(&self, whole_clusters: bool) -> u64 {
        let l1 = (self.refcount_table - self.l1).min((self.data - self.l2) / self.cluster() * 4096);
        let data = if whole_clusters { self.end - self.data } else { 0 };
        l1 + (self.data - self.refcount_table) + data
    }
}

/// [`Layout::spans`] for any size of clusters.
fn spans(cluster: u64, limit: u64, runs: &[Run]) -> impl Iterator<Item = Span> {
    let mut allocation = Allocation::new(cluster, limit);
    runs.iter().enumerate().flat_map(move |(index, run)| allocation.spans(run, runs.get(index + 1)))
}

/// Checks the runs, joins neighbours, and drops zeros that the disk has without a mark.
fn needed_runs(
    size: u64,
    limit: u64,
    runs: impl IntoIterator<Item = (ByteRange, Content)>,
) -> Result<Vec<Run>, BadLayout> {
    let runs = runs.into_iter();
    let mut needed = Vec::with_capacity(runs.size_hint().0);
    let mut previous_end = 0;
    for (range, content) in runs {
        if range.start() < previous_end {
            return Err(BadLayout::UnorderedRuns { start: range.start(), previous_end });
        }
        previous_end = range.end();
        if range.end() > size {
            return Err(BadLayout::PastTheEnd { end: range.end(), size });
        }
        let range = if content == Content::Zero { range.clipped(limit) } else { Some(range) };
        if let Some(range) = range {
            push(&mut needed, Run::new(range, content));
        }
    }
    Ok(needed)
}

fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end == run.start && last.is_data() == run.is_data() => last.end = run.end,
        _ => runs.push(run),
    }
}

fn check_name(name: &str) -> Result<(), BadLayout> {
    let first = name.split('/').next().unwrap_or_default();
    let good = !first.is_empty() && !first.contains(':') && name.len() <= MAX_NAME && !name.contains(char::is_control);
    if good { Ok(()) } else { Err(BadLayout::BackingName(name.to_owned())) }
}

#[cfg(test)]
mod tests;
