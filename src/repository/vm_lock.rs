//! The lock of a VM in a repository, which the services of all hosts respect: flock(2) on a file that is never removed.
//! On OCFS2 it holds for the whole cluster. It is released when its holder ends, however that happens.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{SNAPSHOTS, pool};
use crate::model::VmId;
use crate::sys::file_lock::LockFile;
use crate::sys::folder::{Folder, UnexpectedEntry};
use crate::sys::mounts;

/// The most bytes of a lock file that are read: the holder's name.
const MAX_HOLDER_BYTES: u64 = 256;

/// The other hosts of the pool would not see a lock.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the file system {}; {}", Self::PROBLEM, Self::REMEDY)]
pub struct LocalLocks;

impl LocalLocks {
    pub const PROBLEM: &str =
        "is mounted with localflocks, so the other servers of the pool do not see which VMs are locked";
    pub const REMEDY: &str = "unmount it and mount it without that option, on all servers";
}

/// Held until this is dropped.
#[derive(Debug)]
pub struct VmLock {
    #[expect(dead_code, reason = "the lock is that of the open file")]
    file: LockFile,
}

/// The result of an attempt to lock a VM.
#[derive(Debug)]
pub enum Attempt {
    Locked(VmLock),
    /// Another service holds the lock: its name, from the lock file.
    Held(String),
}

/// Locks `vm` in the repository `root`, if no other service holds the lock. `holder` is the name that others will see.
/// Without it nothing is written, so a frozen file system does not block this.
///
/// # Errors
/// [`UnexpectedEntry`] if the snapshot folder is a link or not a folder: then there are no snapshots either; those of
/// creating and opening the lock file, and of flock(2); [`LocalLocks`] as its source.
pub fn try_lock(root: &Folder, vm: &VmId, holder: Option<&str>) -> io::Result<Attempt> {
    if mounts::keeps_locks_local(root.metadata()?.dev())? {
        return Err(io::Error::new(io::ErrorKind::Unsupported, LocalLocks));
    }
    let snapshots = pool::make_below(root, SNAPSHOTS)?;
    lock_in(&snapshots, vm.as_str(), holder).map_err(|error| match UnexpectedEntry::of(&error) {
        Some(_) => io::Error::other(error.to_string()),
        None => error,
    })
}

fn lock_in(snapshots: &Folder, name: &str, holder: Option<&str>) -> io::Result<Attempt> {
    let locks = pool::make_below(&pool::make_below(snapshots, pool::NAME)?, "locks")?;
    let file = LockFile::new(locks.open_or_create_file(name, 0o640)?);
    if !file.try_lock()? {
        return Ok(Attempt::Held(holder_of(&file)));
    }
    // If someone removed the file meanwhile, another service may hold a lock on a new one.
    if locks.stat(name)?.ino() != file.metadata()?.ino() {
        return Ok(Attempt::Held("the holder of a replaced lock file".to_owned()));
    }
    if let Some(holder) = holder {
        let text = format!("{holder}\n");
        // Only for people. A full file system must not keep a deletion from freeing space.
        let _ = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    }
    Ok(Attempt::Locked(VmLock { file }))
}

/// The text of the file, without characters that do not belong into a line of text.
fn holder_of(file: &File) -> String {
    let mut bytes = Vec::new();
    let _ = file.take(MAX_HOLDER_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let text: String = text.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    if text.is_empty() { "an unnamed service".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const VM: &str = "0004fb00000600000000000000000001";

    fn held_by(root: &Folder) -> Option<String> {
        match try_lock(root, &VM.parse().unwrap(), Some("the second")).unwrap() {
            Attempt::Locked(_) => None,
            Attempt::Held(holder) => Some(holder),
        }
    }

    #[test]
    fn others_learn_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let Attempt::Locked(first) = try_lock(&root, &VM.parse().unwrap(), Some("the first")).unwrap() else {
            panic!("another service holds it");
        };
        assert_eq!(held_by(&root).as_deref(), Some("the first"));
        // The lock of another VM is free.
        let other = try_lock(&root, &"0004fb00000600000000000000000002".parse().unwrap(), None).unwrap();
        assert!(matches!(other, Attempt::Locked(_)));
        drop(first);
        assert_eq!(held_by(&root), None);
        let path = dir.path().join("CoriolisSnapshots/.pool/locks").join(VM);
        assert_eq!(fs::read_to_string(path).unwrap(), "the second\n", "the file stays, with the last holder's name");
    }

    #[test]
    fn the_holder_is_shown_as_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let Attempt::Locked(_first) = try_lock(&root, &VM.parse().unwrap(), Some("x")).unwrap() else { panic!() };
        let path = dir.path().join("CoriolisSnapshots/.pool/locks").join(VM);
        for (text, shown) in [
            (b"\x1b[31mred\n\xff".as_slice(), "[31mred"),
            (b"\n", "an unnamed service"),
            (&[b'a'; 5000], &"a".repeat(256)),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(held_by(&root).as_deref(), Some(shown));
        }
    }

    #[test]
    fn links_are_not_followed_to_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        for (number, link) in
            ["CoriolisSnapshots", "CoriolisSnapshots/.pool", "CoriolisSnapshots/.pool/locks"].iter().enumerate()
        {
            let repository = dir.path().join(number.to_string());
            fs::create_dir_all(repository.join(link).parent().unwrap()).unwrap();
            symlink(&elsewhere, repository.join(link)).unwrap();
            assert!(try_lock(&Folder::open(&repository).unwrap(), &VM.parse().unwrap(), Some("x")).is_err(), "{link}");
        }
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        let repository = dir.path().join("file");
        let locks = repository.join("CoriolisSnapshots/.pool/locks");
        fs::create_dir_all(&locks).unwrap();
        symlink(elsewhere.join("target"), locks.join(VM)).unwrap();
        let root = Folder::open(&repository).unwrap();
        assert!(try_lock(&root, &VM.parse().unwrap(), Some("x")).is_err());
        fs::remove_file(locks.join(VM)).unwrap();
        nix::unistd::mkfifo(&locks.join(VM), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(try_lock(&root, &VM.parse().unwrap(), Some("x")).is_err());
    }
}
