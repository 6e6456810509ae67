//! The lock of a VM in a repository, which the services of all hosts respect: flock(2) on a file that is never
//! removed. OCFS2 makes it cluster-wide. It is free again when its holder ends, however that is.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{POOL, SNAPSHOTS};
use crate::model::VmId;
use crate::sys::folder::{Folder, UnexpectedEntry};

/// Bytes of a lock file that are read: the name of its holder.
const MAX_HOLDER_BYTES: u64 = 256;

/// A VM's lock, held until this is dropped.
#[derive(Debug)]
pub struct VmLock {
    #[expect(dead_code, reason = "the lock is that of the open file")]
    file: File,
}

/// How an attempt to lock a VM ended.
#[derive(Debug)]
pub enum Attempt {
    /// It is locked now.
    Locked(VmLock),
    /// Somebody else has locked it: what the lock file says of whom.
    Held(String),
}

/// Locks `vm` in the repository `root`, where nobody else has: `holder` is what others are told then. Without one
/// nothing is written, so that a frozen file system does not hold this up.
///
/// # Errors
/// Those of making and opening the lock file, and of flock(2); [`UnexpectedEntry`] where the folder of snapshots is a link or no
/// folder, so that there are no snapshots either.
pub fn try_lock(root: &Folder, vm: &VmId, holder: Option<&str>) -> io::Result<Attempt> {
    let snapshots = make_folder(root, SNAPSHOTS)?;
    lock_in(&snapshots, vm.as_str(), holder).map_err(|error| match UnexpectedEntry::of(&error) {
        Some(_) => io::Error::other(error.to_string()),
        None => error,
    })
}

fn lock_in(snapshots: &Folder, name: &str, holder: Option<&str>) -> io::Result<Attempt> {
    let locks = make_folder(&make_folder(snapshots, POOL)?, "locks")?;
    let file = locks.open_or_create_file(name, 0o640)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Attempt::Held(holder_of(&file))),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Where somebody removed the file meanwhile, another one may be locked by now.
    if locks.stat(name)?.ino() != file.metadata()?.ino() {
        return Ok(Attempt::Held("another lock file".to_owned()));
    }
    if let Some(holder) = holder {
        let text = format!("{holder}\n");
        // For people alone. A full file system must not keep a deletion from making room.
        let _ = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    }
    Ok(Attempt::Locked(VmLock { file }))
}

fn make_folder(parent: &Folder, name: &str) -> io::Result<Folder> {
    match parent.folder(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        folder => return folder,
    }
    match parent.create_folder(name, 0o750) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    parent.folder(name)
}

/// What the file says, without what has no place in a line of text.
fn holder_of(file: &File) -> String {
    let mut bytes = Vec::new();
    let _ = file.take(MAX_HOLDER_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let text: String = text.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    if text.is_empty() { "a service that does not say its name".to_owned() } else { text }
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
    fn one_holds_it_and_the_others_learn_who() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let Attempt::Locked(first) = try_lock(&root, &VM.parse().unwrap(), Some("the first")).unwrap() else {
            panic!("it is held already");
        };
        assert_eq!(held_by(&root).as_deref(), Some("the first"));
        // Another VM's is free.
        let other = try_lock(&root, &"0004fb00000600000000000000000002".parse().unwrap(), None).unwrap();
        assert!(matches!(other, Attempt::Locked(_)));
        drop(first);
        assert_eq!(held_by(&root), None);
        let path = dir.path().join("CoriolisSnapshots/.pool/locks").join(VM);
        assert_eq!(fs::read_to_string(path).unwrap(), "the second\n", "it stays, with the last holder's name");
    }

    #[test]
    fn what_the_file_says_is_shown_as_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let Attempt::Locked(_first) = try_lock(&root, &VM.parse().unwrap(), Some("x")).unwrap() else { panic!() };
        let path = dir.path().join("CoriolisSnapshots/.pool/locks").join(VM);
        for (text, shown) in [
            (b"\x1b[31mred\n\xff".as_slice(), "[31mred"),
            (b"\n", "a service that does not say its name"),
            (&[b'a'; 5000], &"a".repeat(256)),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(held_by(&root).as_deref(), Some(shown));
        }
    }

    #[test]
    fn no_link_leads_to_another_lock() {
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
