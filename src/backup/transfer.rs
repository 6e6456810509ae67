//! Brings the bytes of a plan into an image, on several connections at once.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::disk::Disk;
use super::error::{AtPath, BackupError, Result};
use super::journal::Record;
use super::leases::Leases;
use super::plan::{Remaining, UNIT};
use super::progress::{Event, Progress};
use super::rate::Rate;
use super::unit;
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
    let connections = if transfer.is_done() { 0 } else { means.connections.max(1) };
    thread::scope(|scope| {
        for _ in 0..connections {
            let worker = || {
                if let Err(error) = transfer.work() {
                    transfer.fail(error);
                }
            };
            // Fewer connections than wished are enough.
            if thread::Builder::new().name("transfer".to_owned()).spawn_scoped(scope, worker).is_err() {
                break;
            }
        }
    });
    if let Some(error) = transfer.failure().take() {
        return Err(error);
    }
    // Whatever went wrong above: a disk is complete only if nothing is left of its plan.
    if !transfer.is_done() {
        return Err(BackupError::Unusable("no thread can be started; raise the limit of processes".to_owned()));
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
        let mut buffer = Vec::with_capacity(UNIT as usize);
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
    /// The bytes of the unfinished unit. With digests: of all units, because nothing is written before the digest of the
    /// response is right.
    buffer: &'a mut Vec<u8>,
    /// Units in the buffer.
    held: Vec<Range<u64>>,
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
            held: Vec::new(),
            unrecorded: Vec::new(),
            unrecorded_bytes: 0,
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
            let held: u64 = self.held.iter().map(|unit| unit.end - unit.start).sum();
            let begun = self.buffer.len() as u64 - held;
            let missing = unit_end - self.range.start - begun;
            let (now, later) = bytes.split_at(missing.min(bytes.len() as u64) as usize);
            self.buffer.extend_from_slice(now);
            bytes = later;
            if now.len() as u64 == missing {
                let unit = self.range.start..unit_end;
                self.range.start = unit_end;
                self.held.push(unit);
                if !self.means.digests {
                    self.write_held()?;
                }
            }
        }
        Ok(())
    }

    fn write_held(&mut self) -> Result<()> {
        let mut from = 0;
        for range in self.held.drain(..) {
            let bytes = range.end - range.start;
            let end = from + bytes as usize;
            let digest = unit::write(self.disk, range.start, &self.buffer[from..end])?;
            self.unrecorded.push(Record { range, digest });
            self.unrecorded_bytes += bytes;
            from = end;
        }
        self.buffer.clear();
        // A record for each of many small units would cost more than the units.
        if self.unrecorded_bytes >= RECORD_BYTES { self.record() } else { Ok(()) }
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
            let written = if is_complete { self.write_held() } else { Ok(()) };
            self.error = written.and_then(|()| self.record()).err();
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
