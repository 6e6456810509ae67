//! Caches what was read from a file that other programs write. An entry is valid while the file is unchanged.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

/// Device, inode, size and modification time: at least one differs after a file was written or replaced.
type Stamp = (u64, u64, u64, SystemTime);

/// A younger file may be written again without a new modification time: file system clocks tick coarsely.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// How long a value is valid if the file is too young, or could not be read.
const TTL: Duration = Duration::from_secs(1);

/// The last value of one file. One thread reads; meanwhile the others get the previous value, if there is one.
pub(crate) struct FileCache<T> {
    last: Mutex<Option<Last<T>>>,
    /// Held by the thread that reads the file.
    reading: Mutex<()>,
}

#[derive(Clone)]
struct Last<T> {
    read_at: Instant,
    /// Identifies the file that was read, if it existed.
    stamp: Option<Stamp>,
    /// Whether the value is valid until the stamp changes.
    valid: bool,
    value: T,
}

impl<T: Clone> FileCache<T> {
    pub(crate) fn new() -> Self {
        Self { last: Mutex::new(None), reading: Mutex::new(()) }
    }

    /// Returns the cached value of the file at `path`, or else the value from `read`. `read` gets the previous value;
    /// it returns the new one, and whether reading succeeded.
    pub(crate) fn get(&self, path: &Path, read: impl FnOnce(Option<T>) -> (T, bool)) -> T {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_good = |last: &Last<T>, stamp| last.stamp == stamp && (last.valid || last.read_at.elapsed() < TTL);
        if let Some(last) = last()
            && is_good(&last, stamp(path))
        {
            return last.value;
        }
        let _reading = match self.reading.try_lock() {
            Ok(reading) => reading,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => match last() {
                Some(last) => return last.value,
                None => self.reading.lock().unwrap_or_else(PoisonError::into_inner),
            },
        };
        // The stamp is taken before reading: a write in between gives another stamp.
        let (stamp, before) = (stamp(path), last());
        if let Some(last) = before.as_ref().filter(|last| is_good(last, stamp)) {
            return last.value.clone();
        }
        let is_settled = stamp.is_some_and(is_settled);
        let (value, is_good) = read(before.map(|last| last.value));
        let last = Last { read_at: Instant::now(), stamp, valid: is_settled && is_good, value: value.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        value
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.modified().ok()?))
}

fn is_settled((.., changed): Stamp) -> bool {
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > CLOCK_TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let cache = FileCache::new();
        let read = |_| (fs::read_to_string(&path).unwrap_or_default(), true);
        assert_eq!(cache.get(&path, read), "");
        fs::write(&path, "one").unwrap();
        assert_eq!(cache.get(&path, read), "one");
        fs::write(&path, "three").unwrap();
        assert_eq!(cache.get(&path, read), "three");
        // Old enough to be settled, and unchanged.
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(cache.get(&path, read), "three");
        assert_eq!(cache.get(&path, |_| unreachable!("the file is the same")), "three");
        fs::remove_file(&path).unwrap();
        assert_eq!(cache.get(&path, |last| (last.unwrap(), false)), "three");
    }

    #[test]
    fn readers_get_previous_value_while_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("file"), FileCache::new());
        assert_eq!(cache.get(&path, |_| ("old", true)), "old");
        fs::write(&path, "another").unwrap();
        let new = cache.get(&path, |_| {
            // This closure is the reader.
            assert_eq!(cache.get(&path, |_| unreachable!("another thread reads")), "old");
            ("new", true)
        });
        assert_eq!(new, "new");
    }
}
