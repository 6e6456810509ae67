//! What reading a file leaves in the page cache: nothing that was not there, so that a backup does not
//! push out what the guests use. What was there stays, as letting go of it costs much: of short runs, where
//! all of it was.
//!
//! But for two things. What the kernel reads past the end of a long range, a few MiB, stays for the range
//! that comes next, and is taken for somebody else's then; short ranges that find it make the kernel read on.
//! And a short range that a quick device delivers while the page cache is asked for it counts as cached
//! (since Linux 5.9, preadv2 with RWF_NOWAIT starts to read). To ask mincore first would cost each short range
//! some microseconds. And for a price: of several who read the same
//! bytes at the same time, each may have to read them from the device.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::DiskFile;
use super::executor::Access;

/// Bytes that are looked at, and let go of, together. Windows begin at multiples of it, as the largest
/// pages do.
const WINDOW: u64 = 2 << 20;

/// How far ahead of the reader windows are looked at: further than the kernel reads by itself.
const LOOK_AHEAD: u64 = 16 << 20;

/// Shorter runs are no windows: the kernel is told not to read ahead for them.
const SHORT_RUN: u64 = 128 << 10;

/// What is let go of are whole pages.
const PAGE_SIZE: u64 = 4 << 10;

/// How far a reader has come that reads in order.
#[derive(Debug, Default)]
pub struct PageCachePolicy {
    /// What is about to be read, each with whether it was in the cache before.
    windows: VecDeque<(Range<u64>, bool)>,
    /// Whether the kernel was told not to read ahead.
    read_ahead_is_off: bool,
}

impl PageCachePolicy {
    /// Fills `buffer` from `at` on, in a run of data that goes on to `end`.
    ///
    /// # Errors
    /// Those of `DiskFile::read_exact_at`.
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
            // Older kernels cannot tell on the way.
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

    /// Lets go of all windows that end at or before `at`, but for those that were in the cache.
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
