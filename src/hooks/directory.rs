//! The directory of hooks: which programs it contains, and which of them may run.
//!
//! Hooks run as the service, which is root. So only root and the service may be able to change them.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::{FileStat, SFlag, fstatat};

use crate::sys::trusted_path::{Unusable, refuse, resolve, trust};

/// An entry of the directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    pub name: OsString,
    /// The path that is run, without links.
    pub path: PathBuf,
    /// Why it is not run, if it is not.
    pub problem: Option<String>,
}

/// Allowed extensions. run-parts(8) allows none, but hooks for other products have them.
const EXTENSIONS: [&str; 11] = ["sh", "bash", "dash", "ksh", "zsh", "py", "pl", "rb", "php", "js", "lua"];

impl Program {
    /// Whether its name starts with a dot. Such files are not hooks, and are not reported.
    pub fn is_hidden(&self) -> bool {
        self.name.as_bytes().starts_with(b".")
    }
}

/// The entries of the directory at `path`, sorted by the bytes of their names.
pub fn programs(path: &Path) -> Result<Vec<Program>, Unusable> {
    let path = resolve(path)?;
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&path)?;
    let metadata: Metadata = folder.metadata()?;
    // The sticky bit does not keep other users from adding files.
    refuse(&path, trust(metadata.uid(), metadata.mode()))?;
    // From here on the open folder is used, which is the one that was checked.
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(folder.try_clone()?.into()).map_err(io::Error::from)?.iter() {
        names.push(entry.map_err(io::Error::from)?.file_name().to_owned());
    }
    names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
    names.sort();
    let program =
        |name: &CString| Program { name: os(name), path: path.join(os(name)), problem: problem_of(&folder, name) };
    Ok(names.iter().map(program).collect())
}

fn os(name: &CStr) -> OsString {
    OsStr::from_bytes(name.to_bytes()).to_owned()
}

/// The path of the program `name`, if it may be called.
///
/// # Errors
/// Why not.
pub fn callable(directory: &Path, name: &OsStr) -> Result<PathBuf, String> {
    let found = programs(directory).map_err(|unusable| format!("{}: {unusable}", directory.display()))?;
    let program = found.into_iter().find(|program| program.name == name);
    let program = program.ok_or_else(|| format!("is no longer in {}", directory.display()))?;
    program.problem.map_or(Ok(program.path), Err)
}

/// Whether a file with this name is run. Copies by editors and package managers (hook~, hook.bak, hook.rpmsave) would
/// freeze twice; the rule of run-parts(8) excludes them all.
fn is_hook_name(name: &[u8]) -> bool {
    let is_stem = |stem: &[u8]| {
        !stem.is_empty() && stem.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    match name.iter().position(|byte| *byte == b'.') {
        None => is_stem(name),
        Some(dot) => {
            is_stem(&name[..dot]) && EXTENSIONS.iter().any(|extension| extension.as_bytes() == &name[dot + 1..])
        }
    }
}

fn problem_of(folder: &impl AsFd, name: &CStr) -> Option<String> {
    if !is_hook_name(name.to_bytes()) {
        return Some(
            "is passed over for its name, as run-parts(8) does: expected letters, digits, - and _, optionally with an \
             extension such as .sh or .py"
                .to_owned(),
        );
    }
    let found = match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(errno) => return Some(errno.desc().to_owned()),
    };
    if let Some(kind) = odd_kind(&found) {
        return Some(format!("is {kind}, not a regular file"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::geteuid;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn put(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Executables with these names are not hooks.
    const OTHER_NAMES: [&str; 32] = [
        ".10-hook",
        ".10-hook.swp",
        ".#10-hook",
        "#10-hook#",
        "10-hook~",
        "10-hook.~1~",
        "10-hook.bak",
        "10-hook.sh.bak",
        "10-hook.sh~",
        "10-hook.orig",
        "10-hook.old",
        "10-hook.save",
        "10-hook.rej",
        "10-hook.rpmsave",
        "10-hook.rpmnew",
        "10-hook.rpmorig",
        "10-hook.dpkg-old",
        "10-hook.dpkg-new",
        "10-hook.dpkg-dist",
        "10-hook.dpkg-tmp",
        "10-hook.ucf-old",
        "10-hook.ucf-dist",
        "10-hook.sample",
        "10-hook.example",
        "10-hook.disabled",
        "10-hook.swp",
        "10-hook.tmp",
        "10-hook.1",
        "10-hook.2026-01-01",
        "10-hook (copy)",
        "10-hook,v",
        "10-h\u{f6}ok",
    ];

    #[test]
    fn hooks_are_recognized_by_their_names() {
        for name in ["10-hook", "hook", "A_b-9", "freeze.sh", "10-freeze.py", "x.bash"] {
            assert!(is_hook_name(name.as_bytes()), "{name}");
        }
        for name in OTHER_NAMES.into_iter().chain(["", ".", ".sh", "a.", "a..sh", "a.b.sh", "a.SH"]) {
            assert!(!is_hook_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_programs_that_other_users_cannot_change_are_run() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        put(&at("20-good"), 0o755);
        put(&at("10-also-good"), 0o500);
        for name in OTHER_NAMES {
            put(&at(name), 0o755);
        }
        put(&at("a-not-executable"), 0o644);
        put(&at("b-group"), 0o775);
        put(&at("c-others"), 0o757);
        fs::create_dir(at("d-folder")).unwrap();
        symlink(at("20-good"), at("e-link")).unwrap();
        nix::unistd::mkfifo(&at("f-pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut expected: Vec<_> = OTHER_NAMES.iter().map(|name| (*name, Some("for its name"))).collect();
        expected.extend([
            ("10-also-good", None),
            ("20-good", None),
            ("a-not-executable", Some("is not executable")),
            ("b-group", Some("its mode is 0775")),
            ("c-others", Some("its mode is 0757")),
            ("d-folder", Some("is a folder")),
            ("e-link", Some("is a symbolic link")),
            ("f-pipe", Some("is a special file")),
        ]);
        if geteuid().is_root() {
            put(&at("g-stranger"), 0o755);
            chown(at("g-stranger"), Some(1234), None).unwrap();
            expected.push(("g-stranger", Some("belongs to the user 1234")));
        }
        expected.sort_unstable_by_key(|(name, _)| *name);
        let found = programs(dir.path()).unwrap();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (Program { name, path, problem }, (expected_name, expected)) in found.iter().zip(expected) {
            assert_eq!((name.as_os_str(), path), (OsStr::new(expected_name), &at(expected_name)));
            match (problem, expected) {
                (None, None) => {}
                (Some(problem), Some(expected)) => assert!(problem.contains(expected), "{problem}"),
                other => panic!("{expected_name}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_program_of_a_directory_that_others_can_change_is_run() {
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
        // The sticky bit does not keep other users from adding files.
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

    #[test]
    fn links_of_other_users_are_refused() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["ours", "ours/hooks", "stranger"] {
            fs::create_dir(at(folder)).unwrap();
        }
        put(&at("ours/hooks/one"), 0o755);
        let chowned = |path: &Path| std::os::unix::fs::lchown(path, Some(1234), None).unwrap();
        chowned(&at("stranger"));
        let link = |target: &str, name: &str| symlink(at(target), at(name)).unwrap();
        let refusal = |name: &str| match programs(&at(name)) {
            Err(Unusable::Untrusted(problem)) => problem,
            other => panic!("{name}: {other:?}"),
        };
        // The target is ours, but the stranger controls the link.
        link("ours", "stranger/link");
        assert!(refusal("stranger/link/hooks").contains("stranger belongs to the user 1234"));
        // The same behind a link of ours.
        link("stranger/link/hooks", "through");
        assert!(refusal("through").contains("stranger belongs to the user 1234"));
        link("stranger/link/../hooks", "up");
        assert!(refusal("up").contains("stranger belongs to the user 1234"));
        // A stranger's link in a folder with the sticky bit.
        fs::create_dir(at("tmp")).unwrap();
        fs::set_permissions(at("tmp"), Permissions::from_mode(0o1777)).unwrap();
        link("ours/hooks", "tmp/theirs");
        chowned(&at("tmp/theirs"));
        assert!(refusal("tmp/theirs").contains("tmp/theirs belongs to the user 1234"));
        // Our own links, relative links and ".." are resolved.
        link("ours/hooks", "tmp/mine");
        symlink("../ours/../ours/hooks", at("tmp/relative")).unwrap();
        for name in ["tmp/mine", "tmp/relative", "tmp/../ours/hooks", "ours/hooks/"] {
            let found = programs(&at(name)).unwrap();
            assert_eq!(found[0].path, at("ours/hooks/one"), "{name}");
        }
        link("tmp/round", "tmp/round");
        assert!(matches!(programs(&at("tmp/round")), Err(Unusable::Unreadable(_))));
    }
}
