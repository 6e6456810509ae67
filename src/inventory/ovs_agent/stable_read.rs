//! Reads a file that another program may be writing, page after page, without a lock to share.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::AgentDbError;
use super::berkeley_db::{self, Pair};

/// Longest file that is read, in bytes. A real one has some ten thousand.
const MAX_FILE: u64 = 64 << 20;

/// How often a file is read that may be half-written, and the pause between.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// A file that has not changed for so long is not being written.
const QUIET: Duration = Duration::from_secs(2);

/// How often a younger file has to look the same: where all is well, and where it looks half-written.
const SAME_GOOD: usize = 2;
const SAME_BAD: usize = 4;

/// The pairs of a database, of one moment at which nobody wrote.
///
/// The number of pairs that the database says it has is a reason to look again, not an error: libdb
/// does not keep it up where it takes locks, as in files that Python 2's `bsddb.hashopen` writes.
/// What stays the same long enough is what the agent itself would find.
///
/// A file that is not there is waited for only where `may_come`.
pub(super) fn pairs(path: &Path, may_come: bool) -> Result<Vec<Pair>, AgentDbError> {
    let mut previous = None;
    let mut same = 0;
    let mut problem = None;
    for attempt in 1..=ATTEMPTS {
        if attempt > 1 {
            sleep(PAUSE);
        }
        let (bytes, quiet) = match read_once(path) {
            Ok(Some(read)) => read,
            Ok(None) => {
                (previous, problem) = (None, None);
                continue;
            }
            // The agent may be about to put a new file in its place.
            Err(error) if attempt < SAME_BAD && (may_come || error.kind() != io::ErrorKind::NotFound) => continue,
            Err(source) => return Err(AgentDbError::Read { path: path.to_owned(), source }),
        };
        same = if previous.as_ref() == Some(&bytes) { same + 1 } else { 1 };
        let found = berkeley_db::pairs(&bytes);
        let counted = berkeley_db::element_count(&bytes).unwrap_or(0) as usize;
        let good = found.as_ref().is_ok_and(|pairs| pairs.len() == counted);
        if quiet || same >= if good { SAME_GOOD } else { SAME_BAD } {
            if let Ok(pairs) = &found
                && pairs.len() < counted
            {
                tracing::warn!(file = %path.display(), counted, found = pairs.len(), "fewer pairs than were counted");
            }
            return found.map_err(|source| AgentDbError::Database { path: path.to_owned(), source });
        }
        (previous, problem) = (Some(bytes), found.err());
    }
    Err(match problem {
        Some(source) => AgentDbError::Database { path: path.to_owned(), source },
        None => AgentDbError::Changing { path: path.to_owned() },
    })
}

/// The bytes of a file, and whether it was quiet; nothing where it changed while it was read.
///
/// A file that is replaced meanwhile is read to its end all the same: it is open.
fn read_once(path: &Path) -> io::Result<Option<(Vec<u8>, bool)>> {
    // Non-blocking: opening a pipe of that name must not hang.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if before.len() > MAX_FILE {
        return Err(io::Error::other(format!("it has {} bytes, and more than {MAX_FILE} are not read", before.len())));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    let unchanged = bytes.len() as u64 == before.len() && stamps(&before) == stamps(&file.metadata()?);
    Ok(unchanged.then(|| (bytes, is_quiet(&before))))
}

/// What changes with a file.
fn stamps(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    let (changed, modified) = (metadata.ctime(), metadata.mtime());
    (metadata.len(), changed, metadata.ctime_nsec(), modified, metadata.mtime_nsec())
}

/// By the change time, which no one can set back. One in the future tells nothing.
fn is_quiet(metadata: &Metadata) -> bool {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let changed = Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(changed).is_some_and(|age| age > QUIET)
}
