//! The directory of hooks: which programs are in it, and which of them may run.
//!
//! What runs here runs as the service, which is root. So nobody else may be able to put it there.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::{FileStat, SFlag, fstatat};
use nix::unistd::geteuid;

/// Links that are followed, as many as the kernel follows.
const LINKS: u32 = 40;

/// Something in the directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file name.
    pub name: OsString,
    /// Where it lies, with no link in the way: what is run.
    pub path: PathBuf,
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

/// Endings that scripts have. run-parts(8) takes none at all, but hooks written for other products have them.
const SCRIPTS: [&str; 11] = ["sh", "bash", "dash", "ksh", "zsh", "py", "pl", "rb", "php", "js", "lua"];

impl Program {
    /// Whether its name starts with a dot: such files are nobody's hooks, and are not worth a word each time.
    pub fn is_hidden(&self) -> bool {
        self.name.as_bytes().starts_with(b".")
    }
}

/// What is in the directory at `path`, in the order of names, byte by byte.
///
/// # Errors
/// [`Unusable`].
pub fn programs(path: &Path) -> Result<Vec<Program>, Unusable> {
    let path = settled(path)?;
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&path)?;
    let metadata: Metadata = folder.metadata()?;
    // Also with the sticky bit: it keeps nobody from putting something new there.
    refuse(&path, trust(metadata.uid(), metadata.mode()))?;
    // From here on by the open folder: it is the one that was looked at.
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

/// Where `path`, which is absolute, leads to. Each folder on the way, each link, and each folder in which
/// a link lies, is root's or the service's own: so nobody else can make it lead elsewhere later.
fn settled(path: &Path) -> Result<PathBuf, Unusable> {
    let mut ahead: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = ahead.pop_front() {
        // The root's own, or "..", too.
        let next = at.join(&step);
        let metadata = fs::symlink_metadata(&next)?;
        if metadata.is_symlink() {
            links += 1;
            if links > LINKS {
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
            // In a folder with the sticky bit nobody moves what is another's: /tmp.
            let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
            refuse(&next, trust(metadata.uid(), if sticky { 0 } else { metadata.mode() }))?;
        }
        at = next;
    }
    Ok(at)
}

fn os(name: &CStr) -> OsString {
    OsStr::from_bytes(name.to_bytes()).to_owned()
}

fn refuse(path: &Path, trusted: Result<(), String>) -> Result<(), Unusable> {
    trusted.map_err(|problem| Unusable::Untrusted(format!("{} {problem}", path.display())))
}

/// Whether a file of this name is run. Copies of hooks that editors and package managers leave would freeze
/// twice: hook~, hook.bak, hook.rpmsave, hook.dpkg-old. The rule of run-parts(8) leaves all of them out.
fn is_hooks_name(name: &[u8]) -> bool {
    let is_stem = |stem: &[u8]| {
        !stem.is_empty() && stem.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    match name.iter().position(|byte| *byte == b'.') {
        None => is_stem(name),
        Some(dot) => is_stem(&name[..dot]) && SCRIPTS.iter().any(|script| script.as_bytes() == &name[dot + 1..]),
    }
}

fn problem_of(folder: &impl AsFd, name: &CStr) -> Option<String> {
    if !is_hooks_name(name.to_bytes()) {
        return Some(
            "is passed over for its name, as run-parts(8) does: letters, digits, - and _ alone, with or without the \
             ending of a script, such as .sh or .py"
                .to_owned(),
        );
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn put(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Names of executables that are no hooks.
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
    fn names_of_scripts_are_names_of_hooks() {
        for name in ["10-hook", "hook", "A_b-9", "freeze.sh", "10-freeze.py", "x.bash"] {
            assert!(is_hooks_name(name.as_bytes()), "{name}");
        }
        for name in OTHER_NAMES.into_iter().chain(["", ".", ".sh", "a.", "a..sh", "a.b.sh", "a.SH"]) {
            assert!(!is_hooks_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_what_nobody_else_can_change_is_run() {
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

    #[test]
    fn nobody_elses_link_leads_to_a_hook() {
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
        // What it leads to is ours, and where it leads is the stranger's to say.
        link("ours", "stranger/link");
        assert!(refusal("stranger/link/hooks").contains("stranger belongs to the user 1234"));
        // Also behind a link of ours.
        link("stranger/link/hooks", "through");
        assert!(refusal("through").contains("stranger belongs to the user 1234"));
        link("stranger/link/../hooks", "up");
        assert!(refusal("up").contains("stranger belongs to the user 1234"));
        // A link of theirs in a folder with the sticky bit.
        fs::create_dir(at("tmp")).unwrap();
        fs::set_permissions(at("tmp"), Permissions::from_mode(0o1777)).unwrap();
        link("ours/hooks", "tmp/theirs");
        chowned(&at("tmp/theirs"));
        assert!(refusal("tmp/theirs").contains("tmp/theirs belongs to the user 1234"));
        // A link of ours, a relative one, and ".." are followed; what is run has none of them in its way.
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
