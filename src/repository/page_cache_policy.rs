//! A download leaves the page cache as it found it, so a backup does not displace what the guests use. Pages that were
//! cached stay. Of a short run, pages stay only if all of them were cached.
//!
//! There are two exceptions. A few MiB of kernel readahead past the end of a long range stay cached, because the next
//! range cannot tell them from pages that were cached before. Since Linux 5.9, preadv2 with RWF_NOWAIT starts a read, so
//! a short range that a fast device delivers during the check counts as cached.
//!
//! There is a price: if several clients read the same bytes at the same time, each may have to read them from the
//! device.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::DiskFile;
use super::executor::Access;

/// Bytes that are checked and dropped together. Windows begin at multiples of this size, as the largest pages do.
const WINDOW: u64 = 2 << 20;

/// How far ahead of the reader windows are checked: further than the kernel reads ahead.
const LOOK_AHEAD: u64 = 16 << 20;

/// Shorter runs are read without windows, and without the kernel's readahead.
const SHORT_RUN: u64 = 128 << 10;

/// Whole pages are dropped.
const PAGE_SIZE: u64 = 4 << 10;

/// A read of a part of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The offset in the buffer.
    pub to: usize,
    /// The offset on the disk.
    pub at: u64,
    pub length: usize,
    /// The end offset of the sequential read that this read belongs to.
    pub end: u64,
}

impl Read {
    fn of<'a>(&self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        &mut buffer[self.to..self.to + self.length]
    }
}

/// The state of a reader that reads in order.
#[derive(Debug, Default)]
pub struct PageCachePolicy {
    /// Windows that are about to be read, each with whether it was cached before.
    windows: VecDeque<(Range<u64>, bool)>,
    read_ahead_is_off: bool,
}

impl PageCachePolicy {
    /// Fills parts of `buffer`.
    pub fn read(&mut self, access: &Access<'_>, file: &DiskFile, buffer: &mut [u8], reads: &[Read]) -> io::Result<()> {
        // Short reads that the page cache does not have are started first, and awaited together: a device reads them at
        // the same time.
        let mut started = Vec::new();
        for read in reads {
            let goes_back = self.windows.front().is_some_and(|(window, _)| read.at < window.start);
            self.release(access, file, if goes_back { u64::MAX } else { read.at });
            if self.windows.is_empty() && read.end - read.at < SHORT_RUN {
                if let Some(was_cached) = self.read_if_cached(file, read.of(buffer), read.at) {
                    started.push((read, was_cached));
                }
            } else {
                self.look_ahead(file, read.at, read.end);
                file.read_exact_at(access, read.of(buffer), read.at)?;
            }
        }
        for (read, was_cached) in started {
            file.read_exact_at(access, read.of(buffer), read.at)?;
            if !was_cached {
                let end = (read.at + read.length as u64).next_multiple_of(PAGE_SIZE);
                file.drop_cached(&(read.at / PAGE_SIZE * PAGE_SIZE..end));
            }
        }
        Ok(())
    }

    /// Fills `buffer` if the page cache has all of it. Otherwise returns whether its pages were cached; newer kernels have
    /// then started to read them.
    fn read_if_cached(&mut self, file: &DiskFile, buffer: &mut [u8], at: u64) -> Option<bool> {
        if !self.read_ahead_is_off {
            file.set_read_ahead(false);
            self.read_ahead_is_off = true;
        }
        match file.read_if_cached(buffer, at) {
            Ok(true) => None,
            Ok(false) => Some(false),
            // Older kernels cannot tell while they read.
            Err(_) => Some(file.is_cached(at) && file.is_cached(at + buffer.len() as u64 - 1)),
        }
    }

    fn look_ahead(&mut self, file: &DiskFile, at: u64, end: u64) {
        if self.read_ahead_is_off {
            file.set_read_ahead(true);
            self.read_ahead_is_off = false;
        }
        let mut next = self.windows.back().map_or(at, |(window, _)| at.max(window.end));
        while next < end.min(at + LOOK_AHEAD) {
            let window = next..end.min((next / WINDOW + 1) * WINDOW);
            next = window.end;
            let was_cached = file.is_cached(window.start.midpoint(window.end));
            self.windows.push_back((window, was_cached));
        }
    }

    /// Drops the pages of all windows that end at or before `at`, except those that were cached before.
    pub fn release(&mut self, _: &Access<'_>, file: &DiskFile, at: u64) {
        while let Some((window, was_cached)) = self.windows.front()
            && window.end <= at
        {
            if !was_cached {
                file.drop_cached(window);
            }
            self.windows.pop_front();
        }
    }
}
