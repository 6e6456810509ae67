//! Brings the bytes of a plan into an image, on several connections at once.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::blocks::{self, BLOCK, Blocks, Digest};
use super::error::{AtPath, BackupError, Result};
use super::image::Image;
use super::journal::{Journal, Record};
use super::leases::Leases;
use super::plan::{Plan, Remaining, UNIT};
use super::progress::{DiskLabel, Event, Progress};
use super::rate::Rate;
use crate::client::{Client, ClientError, Fetch, RangeSink, Server};

/// Bytes of one request.
const REQUEST_BYTES: u64 = 8 << 20;
/// As [`REQUEST_BYTES`], with a digest: no byte counts before all have arrived.
const DIGEST_REQUEST_BYTES: u64 = UNIT;

/// A disk on its way.
pub struct Disk {
    pub label: DiskLabel,
    /// Of the disk in the API, below the base path.
    pub path: String,
    pub etag: String,
    pub size: u64,
    pub plan: Plan,
    pub image: Image,
    /// Of the image.
    pub file: PathBuf,
    pub blocks: Blocks,
    pub journal: Journal,
    /// What an earlier run brought, in order and disjoint.
    pub done: Vec<Range<u64>>,
}

/// How to transfer.
pub struct Means<'a> {
    pub server: &'a Server,
    pub connections: usize,
    /// The most ranges of one request.
    pub ranges: usize,
    /// Compare each response with a digest of the service.
    pub digests: bool,
    pub rate: &'a Rate,
    pub leases: &'a Leases,
    pub progress: &'a dyn Progress,
}

/// Gets everything that is not done. Returns the number of bytes that came over the network.
///
/// # Errors
/// The first error of any connection. What arrived until then is recorded.
pub fn run(disks: &[Disk], means: &Means<'_>) -> Result<u64> {
    let queue: VecDeque<_> = disks.iter().map(|disk| (disk, Remaining::new(&disk.plan, disk.done.clone()))).collect();
    let transfer = Transfer {
        queue: Mutex::new(queue),
        failure: Mutex::default(),
        has_failed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        means,
    };
    let mut first = transfer.queue();
    let has_work = first.iter_mut().any(|(disk, _)| disk.plan.data().next().is_some());
    drop(first);
    if has_work {
        thread::scope(|scope| {
            for _ in 0..means.connections.max(1) {
                let worker = || {
                    if let Err(error) = transfer.work() {
                        transfer.fail(error);
                    }
                };
                if thread::Builder::new().name("transfer".to_owned()).spawn_scoped(scope, worker).is_err() {
                    break;
                }
            }
        });
    }
    match transfer.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(transfer.bytes.into_inner()),
    }
}

struct Transfer<'a> {
    queue: Mutex<VecDeque<(&'a Disk, Remaining<'a>)>>,
    failure: Mutex<Option<BackupError>>,
    has_failed: AtomicBool,
    bytes: AtomicU64,
    means: &'a Means<'a>,
}

impl<'a> Transfer<'a> {
    fn queue(&self) -> MutexGuard<'_, VecDeque<(&'a Disk, Remaining<'a>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: BackupError) {
        self.has_failed.store(true, Ordering::Relaxed);
        // The others end because of this one.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn next(&self) -> Option<(&'a Disk, Vec<Range<u64>>)> {
        let mut queue = self.queue();
        while let Some((disk, remaining)) = queue.front_mut() {
            let bytes = if self.means.digests { DIGEST_REQUEST_BYTES } else { REQUEST_BYTES };
            let request = remaining.request(self.means.ranges, bytes);
            if !request.is_empty() {
                return Some((disk, request));
            }
            queue.pop_front();
        }
        None
    }

    fn work(&self) -> Result<()> {
        let client = self.means.server.client()?;
        while let Some((disk, ranges)) = self.next() {
            self.get(&client, disk, ranges)?;
        }
        Ok(())
    }

    /// Gets ranges of a disk, however often the connection breaks.
    fn get(&self, client: &Client, disk: &Disk, mut ranges: Vec<Range<u64>>) -> Result<()> {
        let mut backoff = client.server().backoff();
        loop {
            if self.has_failed.load(Ordering::Relaxed) {
                return Err(ClientError::Cancelled.into());
            }
            self.means.leases.renew_if_due(client);
            self.means.rate.wait(ranges.iter().map(|range| range.end - range.start).sum(), client.server().cancel())?;
            let Disk { path, etag, size, .. } = disk;
            let fetch = Fetch { path, etag, size: *size, ranges: &ranges, digest: self.means.digests };
            let mut sink = UnitSink::new(self.means, &self.bytes, disk, &ranges);
            let result = client.fetch(&fetch, &mut sink);
            let (arrived, local_error) = sink.finish(result.is_ok());
            if let Some(error) = local_error {
                return Err(error);
            }
            let Err(error) = result else { return Ok(()) };
            if arrived > 0 {
                backoff.reset();
                cut_front(&mut ranges, arrived);
            }
            if error.is_transient() {
                let text = error.to_string();
                self.means.progress.event(&Event::Retried { disk: &disk.label, error: &text });
            }
            backoff.wait(error, client.server().cancel())?;
        }
    }
}

/// Removes the first `bytes` bytes of the ranges.
fn cut_front(ranges: &mut Vec<Range<u64>>, mut bytes: u64) {
    ranges.retain_mut(|range| {
        let cut = bytes.min(range.end - range.start);
        bytes -= cut;
        range.start += cut;
        !range.is_empty()
    });
}

/// Collects a unit, writes it, and records it.
struct UnitSink<'a> {
    means: &'a Means<'a>,
    /// All bytes that are recorded, of all sinks.
    total: &'a AtomicU64,
    disk: &'a Disk,
    ranges: std::slice::Iter<'a, Range<u64>>,
    /// The rest of the current range.
    range: Range<u64>,
    buffer: Vec<u8>,
    /// Units that wait for the digest of the response.
    unrecorded: Vec<Record>,
    recorded_bytes: u64,
    error: Option<BackupError>,
}

impl<'a> UnitSink<'a> {
    fn new(means: &'a Means<'a>, total: &'a AtomicU64, disk: &'a Disk, ranges: &'a [Range<u64>]) -> Self {
        Self {
            means,
            total,
            disk,
            ranges: ranges.iter(),
            range: 0..0,
            buffer: Vec::with_capacity(UNIT as usize),
            unrecorded: Vec::new(),
            recorded_bytes: 0,
            error: None,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.range.is_empty() {
                let more = || ClientError::Protocol("the service sent more than was asked for".to_owned());
                self.range = self.ranges.next().cloned().ok_or_else(more)?;
            }
            let unit_end = self.range.end.min((self.range.start / UNIT + 1) * UNIT);
            let missing = (unit_end - self.range.start) as usize - self.buffer.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if now.len() == missing {
                self.write_unit(self.range.start..unit_end)?;
                self.range.start = unit_end;
                self.buffer.clear();
            }
        }
        Ok(())
    }

    fn write_unit(&mut self, range: Range<u64>) -> Result<()> {
        let digest = write_unit(self.disk, range.start, &self.buffer)?;
        self.unrecorded.push(Record { range, digest });
        if self.means.digests { Ok(()) } else { self.record() }
    }

    fn record(&mut self) -> Result<()> {
        self.disk.journal.append(&self.unrecorded).at(&self.disk.file)?;
        let bytes = self.unrecorded.drain(..).map(|record| record.range.end - record.range.start).sum();
        self.recorded_bytes += bytes;
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.means.progress.event(&Event::Advanced { disk: &self.disk.label, bytes });
        Ok(())
    }

    /// The bytes that are recorded, and why the local disk failed.
    fn finish(mut self, is_complete: bool) -> (u64, Option<BackupError>) {
        if is_complete && self.error.is_none() {
            self.error = self.record().err();
        }
        (self.recorded_bytes, self.error)
    }
}

impl RangeSink for UnitSink<'_> {
    fn write(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        self.take(bytes).map_err(|error| {
            self.error = Some(error);
            io::Error::other("the sink failed")
        })
    }
}

/// Writes a unit, and the checksums of the blocks that lie within it. Returns its digest.
fn write_unit(disk: &Disk, start: u64, bytes: &[u8]) -> Result<Digest> {
    let leaves = Leaves::of(disk, start, bytes);
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
    fn of(disk: &Disk, start: u64, bytes: &[u8]) -> Self {
        let mut parts = Vec::new();
        let (mut first, mut whole) = (0, Vec::new());
        let mut at = start;
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = (at / BLOCK + 1) * BLOCK;
            let (part, later) = rest.split_at(rest.len().min((end - at) as usize));
            let entry = blocks::entry(part);
            let part_end = at + part.len() as u64;
            if at % BLOCK == 0 && (part_end == end || part_end == disk.size) {
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

/// Reads back what the journal says is done. Returns the ranges that are there, in order.
pub fn recall(disk: &Disk, records: Vec<Record>) -> Result<Vec<Range<u64>>> {
    let mut buffer = vec![0; UNIT as usize];
    let mut done: Vec<Range<u64>> = Vec::new();
    for Record { range, digest } in records {
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        // A range of an older plan has no place in this image.
        if disk.image.read(range.start, bytes).is_err() {
            continue;
        }
        let leaves = Leaves::of(disk, range.start, bytes);
        if leaves.digest() == digest {
            leaves.write(&disk.blocks)?;
            done.push(range);
        }
    }
    done.sort_by_key(|range| range.start);
    done.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
    Ok(done)
}
