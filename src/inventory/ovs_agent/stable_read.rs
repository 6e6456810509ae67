//! Reads a file that another program may be writing page by page, without a common lock.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::AgentDbError;
use super::berkeley_db::{self, Pair};

/// In bytes. A real file has some ten thousand.
const MAX_FILE: u64 = 64 << 20;

/// For a file that may be half-written.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// A file that has not changed for this long is not being written.
const QUIET: Duration = Duration::from_secs(2);

/// How many times in a row a recently changed file has to read the same: if it is valid, and if it looks half-written.
const REPEATS_VALID: usize = 2;
const REPEATS_INVALID: usize = 4;

/// The pairs of a database at a moment when it was not being written.
///
/// If the number of pairs differs from the one in the metadata, the file is read again. If it stays so, it is accepted:
/// libdb does not update the number when it uses locks, as in files of Python 2's `bsddb.hashopen`.
///
/// With `wait`, a missing file is waited for.
pub(super) fn pairs(path: &Path, wait: bool) -> Result<Vec<Pair>, AgentDbError> {
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
            // The agent may be replacing the file.
            Err(error) if attempt < REPEATS_INVALID && (wait || error.kind() != io::ErrorKind::NotFound) => continue,
            Err(source) => return Err(AgentDbError::Read { path: path.to_owned(), source }),
        };
        same = if previous.as_ref() == Some(&bytes) { same + 1 } else { 1 };
        let found = berkeley_db::pairs(&bytes);
        let counted = berkeley_db::element_count(&bytes).unwrap_or(0) as usize;
        let good = found.as_ref().is_ok_and(|pairs| pairs.len() == counted);
        if quiet || same >= if good { REPEATS_VALID } else { REPEATS_INVALID } {
            if let Ok(pairs) = &found
                && pairs.len() < counted
            {
                tracing::warn!(file = %path.display(), counted, found = pairs.len(), "the database has fewer pairs than it says");
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

/// The bytes of a file, and whether its last change was long ago. `None` if it changed meanwhile.
fn read_once(path: &Path) -> io::Result<Option<(Vec<u8>, bool)>> {
    // Non-blocking, so that a pipe with that name does not hang.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if before.len() > MAX_FILE {
        return Err(io::Error::other(format!("it has {} bytes, and the limit is {MAX_FILE}", before.len())));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    let unchanged = bytes.len() as u64 == before.len() && stamps(&before) == stamps(&file.metadata()?);
    Ok(unchanged.then(|| (bytes, is_quiet(&before))))
}

/// Changes when the file changes.
fn stamps(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    let (changed, modified) = (metadata.ctime(), metadata.mtime());
    (metadata.len(), changed, metadata.ctime_nsec(), modified, metadata.mtime_nsec())
}

/// By the change time, which cannot be set back. A time in the future proves nothing.
fn is_quiet(metadata: &Metadata) -> bool {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let changed = Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(changed).is_some_and(|age| age > QUIET)
}
