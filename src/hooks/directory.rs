//! The directory of hooks: which programs are in it, and which of them may run.
//!
//! What runs here runs as the service, which is root. So nobody else may be able to put it there.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstatat};
use nix::unistd::geteuid;

/// Something in the directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file name.
    pub name: OsString,
    /// Why it is not run, where it is not.
    pub problem: Option<String>,
}

/// Why none of them is run.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// Others than root and the service can change what is in it.
    #[error("{0}")]
    Untrusted(String),
}

/// What is in the directory at `path`, in the order of names, byte by byte. Names that start with a
/// dot are no hooks.
///
/// # Errors
/// [`Unusable`].
pub fn programs(path: &Path) -> Result<Vec<Program>, Unusable> {
    // Links in the way are followed once; what counts is where they lead.
    let path = path.canonicalize()?;
    for ancestor in path.ancestors().skip(1) {
        // In a folder with the sticky bit nobody moves what is another's: /tmp.
        let metadata = ancestor.metadata()?;
        let sticky = metadata.mode() & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() && metadata.mode() & 0o1000 != 0;
        refuse(ancestor, trust(metadata.uid(), if sticky { 0 } else { metadata.mode() }))?;
    }
    let folder = File::open(&path)?;
    let metadata: Metadata = folder.metadata()?;
    if !metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory).into());
    }
    refuse(&path, trust(metadata.uid(), metadata.mode()))?;
    // From here on by the open folder: it is the one that was looked at.
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(folder.try_clone()?.into()).map_err(io::Error::from)?.iter() {
        names.push(entry.map_err(io::Error::from)?.file_name().to_owned());
    }
    names.retain(|name| !name.to_bytes().starts_with(b"."));
    names.sort();
    Ok(names.iter().map(|name| Program { name: os(name), problem: problem_of(&folder, name) }).collect())
}

fn os(name: &CStr) -> OsString {
    OsStr::from_bytes(name.to_bytes()).to_owned()
}

fn refuse(path: &Path, trusted: Result<(), String>) -> Result<(), Unusable> {
    trusted.map_err(|problem| Unusable::Untrusted(format!("{} {problem}", path.display())))
}

fn problem_of(folder: &impl AsFd, name: &CStr) -> Option<String> {
    let found = match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(errno) => return Some(errno.desc().to_owned()),
    };
    if let Some(kind) = odd_kind(&found) {
        return Some(format!("is {kind}, and no regular file"));
    }
    if found.st_mode & 0o111 == 0 {
        return Some("is not executable (chmod +x)".to_owned());
    }
    trust(found.st_uid, found.st_mode).err()
}

fn odd_kind(found: &FileStat) -> Option<&'static str> {
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        kind if kind == SFlag::S_IFREG => None,
        kind if kind == SFlag::S_IFDIR => Some("a folder"),
        kind if kind == SFlag::S_IFLNK => Some("a symbolic link"),
        _ => Some("a special file"),
    }
}

/// Whether nobody but root and the service can change what has this owner and mode.
fn trust(owner: u32, mode: u32) -> Result<(), String> {
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!("belongs to the user {owner}, and not to root (chown root)"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("can be written by others than its owner: its mode is {:04o} (chmod go-w)", mode & 0o7777));
    }
    Ok(())
}

/// Where a program of the directory lies.
pub(super) fn path_of(directory: &Path, name: &OsStr) -> PathBuf {
    directory.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn put(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_what_nobody_else_can_change_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        put(&at("20-good"), 0o755);
        put(&at("10-also-good"), 0o500);
        put(&at(".hidden"), 0o755);
        put(&at("a-not-executable"), 0o644);
        put(&at("b-group"), 0o775);
        put(&at("c-others"), 0o757);
        fs::create_dir(at("d-folder")).unwrap();
        symlink(at("20-good"), at("e-link")).unwrap();
        nix::unistd::mkfifo(&at("f-pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut expected = vec![
            ("10-also-good", None),
            ("20-good", None),
            ("a-not-executable", Some("is not executable")),
            ("b-group", Some("its mode is 0775")),
            ("c-others", Some("its mode is 0757")),
            ("d-folder", Some("is a folder")),
            ("e-link", Some("is a symbolic link")),
            ("f-pipe", Some("is a special file")),
        ];
        if geteuid().is_root() {
            put(&at("g-stranger"), 0o755);
            chown(at("g-stranger"), Some(1234), None).unwrap();
            expected.push(("g-stranger", Some("belongs to the user 1234")));
        }
        let found = programs(dir.path()).unwrap();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (Program { name, problem }, (expected_name, expected)) in found.iter().zip(expected) {
            assert_eq!(name, expected_name);
            match (problem, expected) {
                (None, None) => {}
                (Some(problem), Some(expected)) => assert!(problem.contains(expected), "{problem}"),
                other => panic!("{expected_name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_directory_that_others_can_change_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, hooks) = (dir.path().join("parent"), dir.path().join("parent/hooks"));
        fs::create_dir_all(&hooks).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let refusal = || match programs(&hooks) {
            Err(Unusable::Untrusted(problem)) => problem,
            other => panic!("{other:?}"),
        };
        mode(&hooks, 0o775);
        assert!(refusal().contains("parent/hooks can be written by others"), "{}", refusal());
        // The sticky bit does not keep anybody from putting something new there.
        mode(&hooks, 0o1777);
        assert!(refusal().contains("parent/hooks can be written by others"), "{}", refusal());
        mode(&hooks, 0o755);
        mode(&parent, 0o777);
        assert!(refusal().contains("parent can be written by others"), "{}", refusal());
        mode(&parent, 0o1777);
        assert_eq!(programs(&hooks).unwrap(), []);
        assert!(matches!(programs(&dir.path().join("none")), Err(Unusable::Unreadable(_))));
        put(&dir.path().join("file"), 0o755);
        assert!(matches!(programs(&dir.path().join("file")), Err(Unusable::Unreadable(_))));
    }
}
