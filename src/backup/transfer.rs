//! Brings the bytes of a plan into an image, on several connections at once.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::Disk;
use super::error::{AtPath, BackupError, Result};
use super::journal::Record;
use super::leases::Leases;
use super::plan::{Remaining, UNIT};
use super::progress::{Event, Progress};
use super::rate::Rate;
use super::threads;
use super::unit::{Unit, block_end};
use crate::client::{Client, ClientError, Fetch, RangeSink, Server};

/// Bytes of one request.
const REQUEST_BYTES: u64 = 8 << 20;
/// As [`REQUEST_BYTES`], with a digest: no byte counts before all have arrived.
const DIGEST_REQUEST_BYTES: u64 = UNIT;
/// Bytes of units that are recorded together, at least, within one response.
const RECORD_BYTES: u64 = UNIT / 2;

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
/// The first error of any connection. Bytes that arrived before it are recorded.
pub fn run(disks: &[Disk], means: &Means<'_>) -> Result<u64> {
    let queue: VecDeque<_> = disks.iter().map(|disk| (disk, Remaining::new(&disk.plan, disk.done.clone()))).collect();
    let transfer = Transfer {
        queue: Mutex::new(queue),
        failure: Mutex::default(),
        has_failed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        means,
    };
    if !transfer.is_done() {
        threads::share("transfer", means.connections, || {
            if let Err(error) = transfer.work() {
                transfer.fail(error);
            }
        });
    }
    if let Some(error) = transfer.failure().take() {
        return Err(error);
    }
    Ok(transfer.bytes.into_inner())
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
        self.failure().get_or_insert(error);
    }

    fn failure(&self) -> MutexGuard<'_, Option<BackupError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is left to request.
    fn is_done(&self) -> bool {
        self.queue().iter_mut().all(|(_, remaining)| remaining.is_done())
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
        let mut buffer = Vec::new();
        while let Some((disk, ranges)) = self.next() {
            self.get(&client, disk, ranges, &mut buffer)?;
        }
        Ok(())
    }

    /// Gets ranges of a disk, however often the connection breaks.
    fn get(&self, client: &Client, disk: &Disk, mut ranges: Vec<Range<u64>>, buffer: &mut Vec<u8>) -> Result<()> {
        let mut backoff = client.server().backoff();
        loop {
            if self.has_failed.load(Ordering::Relaxed) {
                return Err(ClientError::Cancelled.into());
            }
            self.means.leases.renew_if_due(client);
            self.means.rate.wait(ranges.iter().map(|range| range.end - range.start).sum(), client.server().cancel())?;
            let Disk { path, etag, size, .. } = disk;
            let fetch = Fetch { path, etag, size: *size, ranges: &ranges, digest: self.means.digests };
            let mut sink = UnitSink::new(self.means, &self.bytes, disk, &ranges, buffer);
            let result = client.fetch(&fetch, &mut sink);
            let (arrived, local_error) = sink.finish(result.is_ok());
            if let Some(error) = local_error {
                return Err(error);
            }
            let Err(error) = result.map_err(|error| client.named(error)) else { return Ok(()) };
            if arrived > 0 {
                backoff.reset();
                cut_front(&mut ranges, arrived);
            }
            if error.is_transient() {
                let text = error.to_string();
                self.means.progress.event(&Event::Retried { disk: &disk.label, error: &text });
            }
            client.wait(&mut backoff, error)?;
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

/// Writes what arrives, and records it.
struct UnitSink<'a> {
    means: &'a Means<'a>,
    /// All bytes that are recorded, of all sinks.
    total: &'a AtomicU64,
    disk: &'a Disk,
    ranges: std::slice::Iter<'a, Range<u64>>,
    /// The rest of the current range.
    range: Range<u64>,
    /// The first bytes of an incomplete block. With digests: the whole response, because nothing is written before its
    /// digest is right.
    buffer: &'a mut Vec<u8>,
    unit: Option<Unit>,
    /// Units that are written, and not recorded yet.
    unrecorded: Vec<Record>,
    unrecorded_bytes: u64,
    recorded_bytes: u64,
    error: Option<BackupError>,
}

impl<'a> UnitSink<'a> {
    fn new(
        means: &'a Means<'a>,
        total: &'a AtomicU64,
        disk: &'a Disk,
        ranges: &'a [Range<u64>],
        buffer: &'a mut Vec<u8>,
    ) -> Self {
        buffer.clear();
        Self {
            means,
            total,
            disk,
            ranges: ranges.iter(),
            range: 0..0,
            buffer,
            unit: None,
            unrecorded: Vec::new(),
            unrecorded_bytes: 0,
            recorded_bytes: 0,
            error: None,
        }
    }

    /// Writes the blocks and parts of blocks that are complete with `bytes`.
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.range.is_empty() {
                let more = || ClientError::Protocol("the service sent more than was asked for".to_owned());
                self.range = self.ranges.next().cloned().ok_or_else(more)?;
            }
            let end = self.range.end.min(block_end(self.range.start));
            let missing = (end - self.range.start) as usize - self.buffer.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if now.len() < missing {
                self.buffer.extend_from_slice(now);
            } else if self.buffer.is_empty() {
                self.write(now)?;
            } else {
                let mut part = std::mem::take(self.buffer);
                part.extend_from_slice(now);
                let written = self.write(&part);
                part.clear();
                *self.buffer = part;
                written?;
            }
        }
        Ok(())
    }

    /// Writes the next bytes of the range, which lie in one block.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let start = self.range.start;
        self.unit.get_or_insert_with(|| Unit::new(start)).write(self.disk, bytes)?;
        self.range.start += bytes.len() as u64;
        if self.range.is_empty() || self.range.start.is_multiple_of(UNIT) {
            self.end_unit()?;
            // A record for each of many small units would cost more than the units.
            if self.unrecorded_bytes >= RECORD_BYTES {
                self.record()?;
            }
        }
        Ok(())
    }

    fn end_unit(&mut self) -> Result<()> {
        let Some(unit) = self.unit.take() else { return Ok(()) };
        let record = unit.finish(self.disk)?;
        self.unrecorded_bytes += record.range.end - record.range.start;
        self.unrecorded.push(record);
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        self.disk.journal.append(&self.unrecorded).at(&self.disk.file)?;
        self.unrecorded.clear();
        let bytes = std::mem::take(&mut self.unrecorded_bytes);
        self.recorded_bytes += bytes;
        self.total.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.means.progress.event(&Event::Advanced { disk: &self.disk.label, bytes });
        }
        Ok(())
    }

    /// The bytes that are recorded, and why the local disk failed. The response `is_complete` if its digest, if there is
    /// one, is right.
    fn finish(mut self, is_complete: bool) -> (u64, Option<BackupError>) {
        if self.error.is_none() {
            self.error = self.write_rest(is_complete).err();
        }
        (self.recorded_bytes, self.error)
    }

    fn write_rest(&mut self, is_complete: bool) -> Result<()> {
        if self.means.digests && is_complete {
            let mut response = std::mem::take(self.buffer);
            self.take(&response)?;
            response.clear();
            *self.buffer = response;
        }
        // A response that was cut ends within a unit.
        self.end_unit()?;
        self.record()
    }
}

impl RangeSink for UnitSink<'_> {
    fn write(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        if self.means.digests {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.take(bytes).map_err(|error| {
            self.error = Some(error);
            io::Error::other("the sink failed")
        })
    }
}
