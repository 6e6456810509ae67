//! From the path that a VM definition names to an open disk inside a repository.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Repository;
use crate::model::DiskSource;

/// Why a path is not taken as a VM's disk.
#[derive(Debug, thiserror::Error)]
pub enum Misplaced {
    /// The path leads nowhere, or to what cannot be opened.
    #[error("cannot be opened: {0}")]
    Unreadable(#[from] io::Error),
    /// Links followed, it lies outside all repositories.
    #[error("lies outside of every repository")]
    Outside,
    /// It is a folder, a device, a pipe.
    #[error("is not a regular file")]
    NotAFile,
    /// The file was exchanged while it was opened.
    #[error("was moved while it was opened; try again")]
    Moved,
    /// A path that is no text.
    #[error("has a name that is not UTF-8")]
    NotText,
}

/// A VM's disk, open for reading.
#[derive(Debug)]
pub struct LocatedDisk {
    /// The repository that it lies in.
    pub repository: Repository,
    /// Which disk it is.
    pub source: DiskSource,
    /// The open disk.
    pub file: File,
    /// Its path, links followed.
    pub path: PathBuf,
    /// Its size when it was opened, bytes.
    pub size: u64,
}

/// Opens the disk that a VM definition names `path`.
///
/// The definition is a file that a guest's administrator may influence. So the path must resolve,
/// links followed, to a regular file below one of `repositories`; what was opened is checked, not
/// only what the path said a moment before.
///
/// # Errors
/// [`Misplaced`] with the reason.
pub fn open(repositories: &[Repository], path: &Path) -> Result<LocatedDisk, Misplaced> {
    let resolved = path.canonicalize()?;
    let (repository, below) = innermost(repositories, &resolved).ok_or(Misplaced::Outside)?;
    let file = OpenOptions::new()
        .read(true)
        // Non-blocking: opening a pipe must not hang.
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(&resolved)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Misplaced::NotAFile);
    }
    // A folder on the way may have become a link after the path was resolved.
    if std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))? != resolved {
        return Err(Misplaced::Moved);
    }
    let below = below.to_str().ok_or(Misplaced::NotText)?.to_owned();
    let source = DiskSource { repository: repository.id().clone(), path: below };
    Ok(LocatedDisk { repository: repository.clone(), source, file, path: resolved, size: metadata.len() })
}

/// The repository that `resolved` lies in, and its path below it. Of repositories inside one
/// another, the innermost.
fn innermost<'a>(repositories: &'a [Repository], resolved: &Path) -> Option<(&'a Repository, PathBuf)> {
    repositories
        .iter()
        .filter_map(|repository| {
            let root = repository.mount_point().canonicalize().ok()?;
            // Whole components: /repo1/x is not below /repo.
            let below = resolved.strip_prefix(&root).ok()?.to_path_buf();
            (!below.as_os_str().is_empty()).then_some((repository, below))
        })
        .min_by_key(|(_, below)| below.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_files_inside_a_repository_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let repository = Repository::new("repo".parse().unwrap(), base.join("repo"));
        for folder in ["repo/VirtualDisks", "repo2", "elsewhere"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        for file in ["repo/VirtualDisks/a.img", "repo2/a.img", "elsewhere/secret"] {
            fs::write(base.join(file), b"x").unwrap();
        }
        symlink(base.join("elsewhere/secret"), base.join("repo/VirtualDisks/link.img")).unwrap();
        symlink(base.join("repo/VirtualDisks/a.img"), base.join("repo/VirtualDisks/inside.img")).unwrap();
        symlink(base.join("elsewhere"), base.join("repo/folder")).unwrap();
        nix::unistd::mkfifo(&base.join("repo/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        let open = |path: &str| open(std::slice::from_ref(&repository), &base.join(path));
        let disk = open("repo/VirtualDisks/a.img").unwrap();
        assert_eq!((disk.source.path.as_str(), disk.size), ("VirtualDisks/a.img", 1));
        assert_eq!(open("repo/VirtualDisks/inside.img").unwrap().source.path, "VirtualDisks/a.img");
        for outside in [
            "repo2/a.img",
            "elsewhere/secret",
            "repo/../elsewhere/secret",
            "repo/VirtualDisks/../../repo2/a.img",
            "repo/VirtualDisks/link.img",
            "repo/folder/secret",
            "repo",
        ] {
            assert!(matches!(open(outside), Err(Misplaced::Outside)), "{outside}");
        }
        for odd in ["repo/pipe", "repo/VirtualDisks"] {
            assert!(matches!(open(odd), Err(Misplaced::NotAFile)), "{odd}");
        }
        assert!(matches!(open("repo/missing"), Err(Misplaced::Unreadable(_))));
    }
}
