//! Paths that only root and the service can change.
//!
//! The service is root. It must not run a program, or create a socket, where another user can replace it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;

/// The kernel's limit.
const MAX_LINKS: u32 = 40;

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// Users other than root and the service can change its content.
    #[error("{0}")]
    Untrusted(String),
}

/// Resolves the absolute `path`. Root or the service must own every link and every folder on the way, so that no other
/// user can make the path lead elsewhere later. The caller checks the last component.
///
/// # Errors
/// [`Unusable`].
pub fn resolve(path: &Path) -> Result<PathBuf, Unusable> {
    let mut ahead: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = ahead.pop_front() {
        let next = at.join(&step);
        let metadata = fs::symlink_metadata(&next)?;
        if metadata.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from(Errno::ELOOP).into());
            }
            // A link has no mode of its own.
            refuse(&next, trust(metadata.uid(), 0))?;
            let target = fs::read_link(&next)?;
            target.iter().rev().for_each(|step| ahead.push_front(step.to_owned()));
            continue;
        }
        if step == ".." {
            at.pop();
            continue;
        }
        if !ahead.is_empty() {
            // In a folder with the sticky bit, such as /tmp, users cannot move the files of others.
            let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
            refuse(&next, trust(metadata.uid(), if sticky { 0 } else { metadata.mode() }))?;
        }
        at = next;
    }
    Ok(at)
}

/// Adds the path to the result of [`trust`].
///
/// # Errors
/// [`Unusable::Untrusted`].
pub fn refuse(path: &Path, trusted: Result<(), String>) -> Result<(), Unusable> {
    trusted.map_err(|problem| Unusable::Untrusted(format!("{} {problem}", path.display())))
}

/// Checks that only root and the service can change a file with this owner and mode.
///
/// # Errors
/// What is wrong, and how to change it.
pub fn trust(owner: u32, mode: u32) -> Result<(), String> {
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!("belongs to the user {owner}, not to root (chown root)"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("can be written by others than its owner: its mode is {:04o} (chmod go-w)", mode & 0o7777));
    }
    Ok(())
}
