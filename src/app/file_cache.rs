//! What was read of a file that others write, remembered while the file is the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

/// What changes when a file is written or replaced: device, inode, size, time of change.
type Stamp = (u64, u64, u64, SystemTime);

/// A file that was changed this short a time ago may change again within one tick of its clock.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// How long a reading is believed of a file that may change again, or that could not be read.
const TTL: Duration = Duration::from_secs(1);

/// The last reading. One reads for all who ask meanwhile; they get the last value, where there is one.
pub(crate) struct FileCache<T> {
    last: Mutex<Option<Last<T>>>,
    /// Held by the one who reads.
    reading: Mutex<()>,
}

#[derive(Clone)]
struct Last<T> {
    read_at: Instant,
    /// The file that was read, where there was one.
    stamp: Option<Stamp>,
    /// Whether the reading is valid as long as the file is that one.
    valid: bool,
    value: T,
}

impl<T: Clone> FileCache<T> {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { last: Mutex::new(None), reading: Mutex::new(()) }
    }

    /// What is in the file at `path`, remembered or else from `read`, which is given what was read
    /// last and says whether it was read well.
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
        // Asked before the reading: what is written meanwhile makes another stamp.
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
    fn a_file_is_read_when_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let remembered = FileCache::new();
        let read = |_| (fs::read_to_string(&path).unwrap_or_default(), true);
        assert_eq!(remembered.get(&path, read), "");
        fs::write(&path, "one").unwrap();
        assert_eq!(remembered.get(&path, read), "one");
        fs::write(&path, "three").unwrap();
        assert_eq!(remembered.get(&path, read), "three");
        // Old enough to stand, and the same.
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(remembered.get(&path, read), "three");
        assert_eq!(remembered.get(&path, |_| unreachable!("the file is the same")), "three");
        fs::remove_file(&path).unwrap();
        assert_eq!(remembered.get(&path, |last| (last.unwrap(), false)), "three");
    }

    #[test]
    fn nobody_waits_for_a_reading_where_there_is_a_last_value() {
        let dir = tempfile::tempdir().unwrap();
        let (path, remembered) = (dir.path().join("file"), FileCache::new());
        assert_eq!(remembered.get(&path, |_| ("old", true)), "old");
        fs::write(&path, "another").unwrap();
        let new = remembered.get(&path, |_| {
            // While this reads.
            assert_eq!(remembered.get(&path, |_| unreachable!("somebody reads")), "old");
            ("new", true)
        });
        assert_eq!(new, "new");
    }
}
