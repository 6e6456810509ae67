//! Notices the changes of a folder by its version.

use std::time::{Duration, Instant};

use crate::repository::listing::Version;

/// How long a folder is read after each change: two changes within one tick of the kernel's clock look like one.
const SETTLING: Duration = Duration::from_secs(2);

/// The version of a folder; `None` if it does not exist.
type FolderVersion = Option<Version>;

/// A folder whose changes are noticed by its version.
#[derive(Default)]
pub(super) struct Watched {
    /// The version that was read last, and when it was seen first.
    last: Option<(FolderVersion, Instant)>,
}

impl Watched {
    /// The version that need not be read again.
    pub fn settled(&self) -> Option<FolderVersion> {
        self.last.filter(|(_, since)| since.elapsed() > SETTLING).map(|(version, _)| version)
    }

    pub fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Records the version that was read. Returns whether it is another one.
    pub fn see(&mut self, version: FolderVersion, now: Instant) -> bool {
        let is_changed = self.last.is_none_or(|(last, _)| last != version);
        if is_changed {
            self.last = Some((version, now));
        }
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_settled_some_time_after_its_change() {
        let (mut watched, now) = (Watched::default(), Instant::now());
        assert!(watched.see(None, now) && !watched.see(None, now));
        assert_eq!(watched.settled(), None);
        watched.last = Some((None, now.checked_sub(2 * SETTLING).unwrap()));
        assert_eq!(watched.settled(), Some(None));
    }
}
