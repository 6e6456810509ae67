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
    /// The version that was read last, when it was read first, and when it was read last.
    last: Option<(FolderVersion, Instant, Instant)>,
}

impl Watched {
    /// The version that need not be read again.
    pub fn settled(&self) -> Option<FolderVersion> {
        let is_settled = |(_, first, last): &(_, Instant, Instant)| last.duration_since(*first) > SETTLING;
        self.last.filter(is_settled).map(|(version, _, _)| version)
    }

    pub fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Records the version that was read from `now` on. Returns whether it is another one.
    pub fn see(&mut self, version: FolderVersion, now: Instant) -> bool {
        let former = self.last.filter(|(last, _, _)| *last == version);
        self.last = Some((version, former.map_or(now, |(_, first, _)| first), now));
        former.is_none()
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
        // A second change may follow within one tick of the clock. Time alone does not show that.
        watched.last = Some((None, now, now));
        assert_eq!(watched.settled(), None);
        assert!(!watched.see(None, now + 2 * SETTLING));
        assert_eq!(watched.settled(), Some(None));
    }
}
