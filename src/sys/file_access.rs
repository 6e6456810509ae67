//! Which files this process can reach: landlock(7).
//!
//! A rule belongs to a file or folder that exists when the rules are made, and covers everything below it, including
//! file systems that are mounted below it later. Rules cannot be added later.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};

/// What the process may do with a path and everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// List folders.
    List,
    /// Read files and list folders.
    Read,
    /// Read and write files; create and remove no file.
    Update,
    /// Read, write, create, rename and remove files and folders.
    Change,
    /// List folders; create and remove sockets, and remove files.
    Sockets,
}

impl Right {
    /// Whether it permits all that `other` does.
    pub fn includes(self, other: Self) -> bool {
        self.accesses().contains(other.accesses())
    }

    fn accesses(self) -> BitFlags<AccessFs> {
        match self {
            Self::List => AccessFs::ReadDir.into(),
            Self::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Self::Update => make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate}),
            Self::Change => {
                let folders = make_bitflags!(AccessFs::{MakeReg | MakeDir | RemoveFile | RemoveDir});
                Self::Update.accesses() | folders
            }
            Self::Sockets => make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile}),
        }
    }
}

/// A path with a right. A missing path gets no rule.
pub type Rule = (PathBuf, Right);

/// Why [`restrict`] has restricted nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unrestricted {
    #[error("the kernel has no Landlock, or it is turned off (lsm= on its command line)")]
    Unsupported,
    #[error("{0}")]
    Failed(String),
}

/// Restricts this process, which must have one thread, to `rules`, to listening at the TCP `port`, and to signals and
/// abstract Unix sockets of its own, as far as the kernel can.
///
/// # Errors
/// [`Unrestricted`].
pub fn restrict(rules: &[Rule], port: u16) -> Result<(), Unrestricted> {
    refuse_other_threads()?;
    let failed = |error: landlock::RulesetError| Unrestricted::Failed(error.to_string());
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::BindTcp))
        .and_then(|ruleset| ruleset.scope(Scope::Signal | Scope::AbstractUnixSocket))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (path, right) in rules {
        let Some(opened) = open(path)? else { continue };
        let mut accesses = right.accesses();
        if !path.is_dir() {
            accesses &= AccessFs::from_file(ABI::V5);
        }
        if !accesses.is_empty() {
            ruleset = ruleset.add_rule(PathBeneath::new(opened, accesses)).map_err(failed)?;
        }
    }
    let ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp)).map_err(failed)?;
    let status = ruleset.restrict_self().map_err(failed)?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        _ => Err(Unrestricted::Unsupported),
    }
}

/// Other threads would stay unrestricted, and share all memory.
fn refuse_other_threads() -> Result<(), Unrestricted> {
    let reason = match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => return Ok(()),
        Ok(threads) => format!("the process has {threads} threads already"),
        Err(error) => format!("/proc/self/task: {error}"),
    };
    Err(Unrestricted::Failed(reason))
}

/// Opens the path for a rule. `None` if it does not exist.
fn open(path: &Path) -> Result<Option<PathFd>, Unrestricted> {
    match PathFd::new(path) {
        Ok(opened) => Ok(Some(opened)),
        Err(_) if !path.exists() => Ok(None),
        Err(error) => Err(Unrestricted::Failed(error.to_string())),
    }
}

/// Whether the kernel can restrict access to files.
pub fn is_supported() -> bool {
    // Nothing is restricted: the ruleset is only created, which an unsupporting kernel turns into an empty one.
    let ruleset = Ruleset::default().handle_access(AccessFs::ReadFile).and_then(Ruleset::create);
    ruleset.is_ok_and(|ruleset| Option::<std::os::fd::OwnedFd>::from(ruleset).is_some())
}
