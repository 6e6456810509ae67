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

/// The state of a reader that reads in order.
#[derive(Debug, Default)]
pub struct PageCachePolicy {
    /// Windows that are about to be read, each with whether it was cached before.
    windows: VecDeque<(Range<u64>, bool)>,
    read_ahead_is_off: bool,
}

impl PageCachePolicy {
    /// Fills `buffer` from `at` on, in a run of data that ends at `end`.
    pub fn read(
        &mut self,
        access: &Access<'_>,
        file: &DiskFile,
        buffer: &mut [u8],
        at: u64,
        end: u64,
    ) -> io::Result<()> {
        let goes_back = self.windows.front().is_some_and(|(window, _)| at < window.start);
        self.release(access, file, if goes_back { u64::MAX } else { at });
        if self.windows.is_empty() && end - at < SHORT_RUN {
            return self.read_short(access, file, buffer, at);
        }
        self.look_ahead(file, at, end);
        file.read_exact_at(access, buffer, at)
    }

    fn read_short(&mut self, access: &Access<'_>, file: &DiskFile, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if !self.read_ahead_is_off {
            file.set_read_ahead(false);
            self.read_ahead_is_off = true;
        }
        let was_cached = match file.read_if_cached(buffer, at) {
            Ok(true) => return Ok(()),
            Ok(false) => false,
            // Older kernels cannot tell while they read.
            Err(_) => file.is_cached(at) && file.is_cached(at + buffer.len() as u64 - 1),
        };
        file.read_exact_at(access, buffer, at)?;
        if !was_cached {
            file.drop_cached(&(at / PAGE_SIZE * PAGE_SIZE..(at + buffer.len() as u64).next_multiple_of(PAGE_SIZE)));
        }
        Ok(())
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
