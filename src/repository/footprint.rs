//! What reading a file leaves in the page cache: nothing that was not there, so that a backup does not
//! push out what the guests use. But for one thing: what the kernel reads past the end of a range, a few
//! MiB, stays for the range that comes next, and is taken for somebody else's then.

use std::collections::VecDeque;
use std::ops::Range;

use super::DiskFile;

/// Bytes that are looked at, and let go of, together. Windows begin at multiples of it, as the largest
/// pages do.
const WINDOW: u64 = 2 << 20;

/// How far ahead of the reader windows are looked at: further than the kernel reads by itself.
const AHEAD: u64 = 16 << 20;

/// Shorter runs are not worth it.
const SHORTEST: u64 = 128 << 10;

/// How far a reader has come that reads in order.
#[derive(Debug, Default)]
pub struct Footprint {
    /// What is about to be read, each with whether it was in the cache before.
    windows: VecDeque<(Range<u64>, bool)>,
}

impl Footprint {
    /// To be called before `file` is read at `at`, in a run of data that goes on to `end`.
    pub fn reach(&mut self, file: &DiskFile, at: u64, end: u64) {
        self.let_go(file, at);
        if self.windows.is_empty() && end - at < SHORTEST {
            return;
        }
        let mut next = self.windows.back().map_or(at, |(window, _)| at.max(window.end));
        while next < end.min(at + AHEAD) {
            let window = next..end.min((next / WINDOW + 1) * WINDOW);
            next = window.end;
            let was_cached = file.is_cached(window.start.midpoint(window.end));
            self.windows.push_back((window, was_cached));
        }
    }

    /// Lets go of all windows that end at or before `at`, but for those that were in the cache.
    pub fn let_go(&mut self, file: &DiskFile, at: u64) {
        while let Some((window, was_cached)) = self.windows.front()
            && window.end <= at
        {
            if !was_cached {
                file.forget(window);
            }
            self.windows.pop_front();
        }
    }
}
