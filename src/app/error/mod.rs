//! What a caller can be told. How it is put in HTTP is the business of `http::failure`.

mod refusal;

use std::io;

use nix::errno::Errno;

use crate::auth::{BadToken, LoginError};
use crate::model::{SnapshotId, UnfitPair};
use crate::repository::Unavailable;
use crate::store::StoreError;

pub use refusal::Refusal;

/// Why a journey did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// The manager refused the credentials.
    #[error("the user name or the password is wrong")]
    BadCredentials,
    /// No good token came with the request.
    #[error(transparent)]
    NoSession(#[from] BadToken),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// Another service, or a person, has removed the snapshot.
    #[error("the snapshot was removed by another service, or by hand")]
    SnapshotGone,
    /// No VM of the inventory is called so.
    #[error("no such VM")]
    NoVm,
    /// The snapshot is there, and is another VM's.
    #[error("the snapshot {0} belongs to another VM")]
    OtherVm(SnapshotId),
    /// The snapshot to compare to is not older.
    #[error("{0}")]
    NotOlder(UnfitPair),
    /// The policy says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No snapshot can be made of this VM.
    #[error("the VM cannot be snapshotted: {0}")]
    NotSnapshottable(String),
    /// The base's files are gone, or are not the ones that were snapshotted.
    #[error("nothing can be compared to this base: disk {disk}: {cause}; take a full copy of the snapshot instead")]
    BaseLost {
        /// Name of the disk.
        disk: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The blocks of the base are being moved, as by a defragmenter.
    #[error(
        "disk {disk}: the blocks of the base keep moving; try again when the defragmenter of the file system is done, \
         or take a full copy of the snapshot instead"
    )]
    BaseUnstable {
        /// Name of the disk.
        disk: String,
    },
    /// The file of a snapshot was touched, and it is being found out whether its content is as it was recorded.
    #[error("disk {disk}: the snapshot's file was touched, and its content is being checked; try again later")]
    ContentCheckRunning {
        /// Name of the disk.
        disk: String,
    },
    /// The repository of a snapshot's files is not there at the moment.
    #[error("disk {disk}: {cause}; the snapshot is there again when the repository is")]
    RepositoryUnavailable {
        /// Name of the disk.
        disk: String,
        /// What is wrong with the repository.
        cause: String,
    },
    /// A repository is not there, or does not answer: what lies in it is not known at the moment.
    #[error("{0}; try again when the repository answers")]
    Unavailable(String),
    /// Another service that uses the same repository changes the snapshots of this VM.
    #[error("the snapshots of this VM are being changed by {holder}; try again in a while")]
    VmBusy {
        /// What its lock file says of whom.
        holder: String,
    },
    /// The snapshot's own files are gone, or are not the ones that were snapshotted.
    #[error("the snapshot is lost: disk {disk}: {cause}; delete it and take a new one")]
    SnapshotLost {
        /// Name of the disk.
        disk: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Something stands where a snapshot's files are, or were, that the service has not made.
    #[error(
        "the snapshot {snapshot} is deleted, but not all of it was removed: {left}; that is not the service's and stays: \
         move it away, and delete the snapshot again"
    )]
    NotRemoved {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is left, and why.
        left: String,
    },
    /// A snapshot that the database does not know, of which a repository has files that are not removed.
    #[error(
        "the database does not know the snapshot {id}, and its files stay: {reason}; take it over first \
         (coriolis-ovm-exporter adopt, or adopt --manifests), or remove its folder by hand"
    )]
    NotAdopted {
        /// The snapshot.
        id: SnapshotId,
        /// Why they are not removed.
        reason: String,
    },
    /// A hook before an operation failed, and so the operation was not done.
    #[error(
        "the hook {hook} did not let {operation} go on: {how}; nothing was done, and the service's log has what the \
         hook has printed"
    )]
    HookFailed {
        /// Name of the hook.
        hook: String,
        /// What was not done.
        operation: &'static str,
        /// How it ended.
        how: String,
    },
    /// An operation failed, and hooks after it were not called, because the config says so.
    #[error("{error}; not called: post_on_failure is false, so the post of these hooks was not run: {hooks}")]
    PostHooksSkipped {
        /// Why the operation failed.
        error: Box<Error>,
        /// Names of the hooks.
        hooks: String,
    },
    /// The disks were not cloned in the time that a guest may be held for it.
    #[error(
        "the disks were not cloned within {seconds} s (hooks.timeout), so the guest was let go and the snapshot given \
         up; look at the storage, and at the kernel's log of the host"
    )]
    CloneTimeout {
        /// The time, seconds.
        seconds: f64,
    },
    /// The manager cannot be asked.
    #[error("the manager cannot be reached or does not answer as it should; the service's log says why")]
    ManagerUnavailable(String),
    /// Too many log-ins at once.
    #[error("too many log-ins at once; try again in a second")]
    Throttled,
    /// A repository is full.
    #[error("{step}: no space is left there; delete snapshots that are not needed any more")]
    NoSpace {
        /// What was done.
        step: String,
    },
    /// A repository cannot be written to.
    #[error("{step}: the file system is mounted read-only; look at the kernel's log of the host")]
    ReadOnly {
        /// What was done.
        step: String,
    },
    /// The file system failed.
    #[error("{step}: {cause}")]
    Io {
        /// What was done.
        step: String,
        /// The errno, and what it means.
        cause: String,
    },
    /// ovs-agent's database cannot be read, and no repository is known.
    #[error("no repository is known: {0}")]
    AgentDb(String),
    /// The database failed.
    #[error("the service's database does not answer; its log says why")]
    Store(#[from] StoreError),
    /// The client has disconnected, and the work for it is cancelled.
    #[error("the client has disconnected")]
    Cancelled,
    /// A fault of ours.
    #[error("an internal error; the service's log says more")]
    Internal(String),
}

impl Error {
    /// The error of a step on a file system.
    pub(crate) fn of_step(step: impl Into<String>, source: io::Error) -> Self {
        let step = step.into();
        if let Some(absent) = Unavailable::of(&source) {
            return Self::Unavailable(format!("{step}: the repository {absent}"));
        }
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::NoSpace { step },
            Some(Errno::EROFS) => Self::ReadOnly { step },
            _ => Self::Io { step, cause: source.to_string() },
        }
    }

    /// The error itself, without what hooks did not do after it.
    pub fn cause(&self) -> &Self {
        match self {
            Self::PostHooksSkipped { error, .. } => error.cause(),
            _ => self,
        }
    }

    /// Whether the request is at fault, or the policy against it; not the host, the manager or we.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::PostHooksSkipped { error, .. } => error.is_refusal(),
            Self::BadRequest(_)
            | Self::BadCredentials
            | Self::NoSession(_)
            | Self::NotFound(_)
            | Self::SnapshotGone
            | Self::NoVm
            | Self::OtherVm(_)
            | Self::NotOlder(_)
            | Self::Refused(_)
            | Self::NotSnapshottable(_)
            | Self::BaseLost { .. }
            | Self::SnapshotLost { .. }
            | Self::NotAdopted { .. }
            | Self::Throttled => true,
            Self::RepositoryUnavailable { .. }
            | Self::VmBusy { .. }
            | Self::Unavailable(_)
            | Self::BaseUnstable { .. }
            | Self::ContentCheckRunning { .. }
            | Self::ManagerUnavailable(_)
            | Self::NotRemoved { .. }
            | Self::HookFailed { .. }
            | Self::CloneTimeout { .. }
            | Self::NoSpace { .. }
            | Self::ReadOnly { .. }
            | Self::Io { .. }
            | Self::AgentDb(_)
            | Self::Store(_)
            | Self::Cancelled
            | Self::Internal(_) => false,
        }
    }

    /// What the log is to say, where that is more than the caller hears.
    pub fn hidden_cause(&self) -> Option<String> {
        match self {
            Self::ManagerUnavailable(cause) | Self::Internal(cause) => Some(cause.clone()),
            Self::Store(cause) => Some(cause.to_string()),
            Self::PostHooksSkipped { error, .. } => error.hidden_cause(),
            _ => None,
        }
    }
}

impl From<LoginError> for Error {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Refused => Self::BadCredentials,
            LoginError::Unavailable(cause) | LoginError::Unclear(cause) => Self::ManagerUnavailable(cause),
            error @ LoginError::LetsAnybodyIn(_) => Self::ManagerUnavailable(error.to_string()),
            LoginError::Busy => Self::Throttled,
        }
    }
}

impl From<UnfitPair> for Error {
    fn from(error: UnfitPair) -> Self {
        match error {
            UnfitPair::OtherVm(id) => Self::OtherVm(id),
            UnfitPair::NotOlder(_) => Self::NotOlder(error),
        }
    }
}
