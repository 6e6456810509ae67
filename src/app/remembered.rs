//! What was read of a file that others write, remembered while the file is the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What changes when a file is written or replaced: device, inode, size, time of change.
type Stamp = (u64, u64, u64, SystemTime);

/// A file that was changed this short a time ago may change again within one tick of its clock.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// How long a reading is believed of a file that may change again, or that could not be read.
const BELIEVED: Duration = Duration::from_secs(1);

/// The last reading. One reads for all who ask meanwhile.
pub(super) struct Remembered<T>(Mutex<Option<Last<T>>>);

struct Last<T> {
    read_at: Instant,
    /// The file that was read, where there was one.
    stamp: Option<Stamp>,
    /// Whether the reading stands as long as the file is that one.
    stands: bool,
    value: T,
}

impl<T: Clone> Remembered<T> {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// What is in the file at `path`, remembered or else from `read`, which is given what was read
    /// last and says whether it was read well.
    pub(super) fn get(&self, path: &Path, read: impl FnOnce(Option<T>) -> (T, bool)) -> T {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(path);
        if let Some(last) = &*last
            && last.stamp == stamp
            && (last.stands || last.read_at.elapsed() < BELIEVED)
        {
            return last.value.clone();
        }
        // Asked before the reading: what is written meanwhile makes another stamp.
        let is_settled = stamp.is_some_and(is_settled);
        let (value, is_good) = read(last.take().map(|last| last.value));
        *last = Some(Last { read_at: Instant::now(), stamp, stands: is_settled && is_good, value: value.clone() });
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
        let remembered = Remembered::new();
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
}
