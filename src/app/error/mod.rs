//! The errors that callers get. `http::failure` maps them to HTTP responses.

mod code;
mod reason;
mod refusal;

use std::io;

use nix::errno::Errno;

use crate::auth::{BadToken, LoginError};
use crate::model::{Permission, Role, SnapshotId, UnfitPair};
use crate::repository::Unavailable;
use crate::store::StoreError;

pub use reason::Reason;
pub(crate) use reason::{Named, Sight};
pub use refusal::Refusal;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The manager refused the credentials.
    #[error("wrong user name or password")]
    BadCredentials,
    /// The request has no valid token.
    #[error(transparent)]
    NoSession(#[from] BadToken),
    /// The request has no token, and no rule names the certificate.
    #[error(
        "the request has no token, and no rule names the client's certificate ({0}); log in for a token, or ask an \
         administrator of this service for a rule (access.rules in its config)"
    )]
    UnknownCertificate(String),
    /// A process on the Unix socket that is not an operator's.
    #[error(
        "the user with the id {uid} may not use this socket: only root, the service's user and the members of \
         api.socket_group may; use one of these, or HTTPS with a token"
    )]
    NotAnOperator { uid: u32 },
    /// A browser sends it for a page of another site, with the certificate of its user.
    #[error(
        "a web page of another site may not use the client's certificate; send a token, or, without a browser, leave out \
         the headers Origin and Sec-Fetch-Site"
    )]
    CrossSite,
    /// The user's roles do not permit it.
    #[error(
        "the role {role} is needed {what}; ask an administrator of this service for it (access.rules in its config)"
    )]
    Forbidden { role: Role, what: &'static str },
    /// The ticket is for other requests.
    #[error("this ticket does not permit this; request one with {0:?} in ops")]
    NotInTicket(&'static str),
    #[error("{0}")]
    NotFound(&'static str),
    /// Another service, or a person, has removed the snapshot.
    #[error("another exporter or an administrator removed the snapshot")]
    SnapshotGone,
    /// The inventory has no VM of this name or id.
    #[error("no such VM")]
    NoVm,
    /// The snapshot exists, but under another VM.
    #[error("the snapshot {0} belongs to another VM")]
    OtherVm(SnapshotId),
    /// The snapshot to compare to is not older.
    #[error("{0}")]
    NotOlder(UnfitPair),
    /// The policy refuses the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("this VM cannot be snapshotted: {0}")]
    NotSnapshottable(Reason),
    /// The base's files are missing, or were changed or replaced.
    #[error("the base cannot be used for a comparison: disk {disk}: {cause}; transfer the full snapshot instead")]
    BaseLost { disk: String, cause: String },
    /// The changes of a disk cannot be listed, and the request refuses a full map.
    #[error("disk {disk} can only be transferred in full: {reason}; repeat the request without ifFull=error")]
    FullRequired { disk: String, reason: &'static str },
    /// Something moves the blocks of the base, such as a defragmenter.
    #[error(
        "disk {disk}: the blocks of the base keep moving; retry when the file system's defragmenter has finished, or \
         transfer the full snapshot instead"
    )]
    BaseUnstable { disk: String },
    /// The file of a snapshot was touched, and a checksum of its content is being calculated.
    #[error("disk {disk}: the snapshot's file was touched, and its content is being verified; retry later")]
    ContentCheckRunning { disk: String },
    /// The repository with the snapshot's files is unavailable.
    #[error("disk {disk}: {cause}; retry when the repository is available again")]
    RepositoryUnavailable { disk: String, cause: String },
    /// A repository is unmounted or does not respond, so its contents are unknown.
    #[error("{0}; retry when the repository is available again")]
    Unavailable(String),
    /// Another exporter holds the VM lock.
    #[error("another exporter is changing the snapshots of this VM: {holder}; retry later")]
    VmBusy {
        /// From the lock file: host name and process id.
        holder: String,
    },
    /// The snapshot's files are missing, or were changed or replaced.
    #[error("the snapshot is lost: disk {disk}: {cause}; delete it and take a new one")]
    SnapshotLost { disk: String, cause: String },
    /// The snapshot's folder contains entries that the service did not create and does not remove.
    #[error(
        "the snapshot {snapshot} is deleted, but its folder could not be removed: {left}; the service keeps what it \
         did not create: move it away, then delete the snapshot again"
    )]
    NotRemoved {
        snapshot: SnapshotId,
        /// The remaining entries, and why they remain.
        left: String,
    },
    /// The snapshot is not in the database, but a repository has files of it, which the service does not remove.
    #[error(
        "snapshot {id} is not in the database, and its files were kept: {reason}; adopt it first \
         (coriolis-ovm-exporter adopt, or adopt --manifests), or remove its folder by hand"
    )]
    NotAdopted {
        id: SnapshotId,
        /// Why the files were kept.
        reason: String,
    },
    /// A `pre` hook failed, so the operation was not started.
    #[error("hook {hook} refused {operation}: {how}; nothing was changed; the service's log has the hook's output")]
    HookFailed {
        hook: String,
        operation: &'static str,
        /// How the hook ended.
        how: String,
    },
    /// The request requires a quiesced snapshot, and no hook quiesced the guest.
    #[error(
        "the guest was not quiesced, so no snapshot was created: {0}; repair the hook, or create a crash-consistent \
         snapshot with quiesce \"try\" or \"skip\""
    )]
    NotQuiesced(String),
    /// An operation failed, and `post` hooks were not called because `post_on_failure` is false.
    #[error("{error}; post was not called for these hooks because post_on_failure is false: {hooks}")]
    PostHooksSkipped { error: Box<Error>, hooks: String },
    /// The error of one VM of several.
    #[error("VM {vm}: {error}")]
    OfVm { vm: String, error: Box<Error> },
    /// Cloning the disks took longer than a guest may be frozen.
    #[error(
        "cloning the disks took longer than {seconds} s (hooks.timeout), so the guest was released and the snapshot \
         discarded; check the storage and the host's kernel log"
    )]
    CloneTimeout { seconds: f64 },
    /// The manager cannot be reached, or its response cannot be used.
    #[error("the manager cannot be reached, or gave an unexpected response; see the service's log")]
    ManagerUnavailable(String),
    /// Too many log-ins at once.
    #[error("too many log-ins at once; retry in a second")]
    Throttled,
    /// Too many wrong passwords were sent. The text is always the same, so that the audit can summarize it.
    #[error("too many failed log-ins {}; see Retry-After", if *.of_account { "to this account" } else { "from this address" })]
    TooManyFailures {
        /// Whether those of the account count, and not those of the client's address.
        of_account: bool,
        /// Seconds.
        retry_after: u64,
    },
    /// The refresh token is malformed, unknown, ended or used.
    #[error("the refresh token is unknown, has ended, or was used before; log in with the password")]
    BadRefreshToken,
    /// A repository is full.
    #[error("{step}: the file system is full; delete snapshots that are no longer needed")]
    NoSpace { step: String },
    /// The file system of the database has no room for a copy.
    #[error("{0}")]
    NoRoomForCopy(StoreError),
    /// A repository cannot be written to.
    #[error("{step}: the file system is mounted read-only; check the host's kernel log")]
    ReadOnly { step: String },
    /// The file system failed.
    #[error("{step}: {cause}")]
    Io {
        step: String,
        /// The errno and its meaning.
        cause: String,
    },
    /// ovs-agent's database cannot be read, so no repository is known.
    #[error("no repository is known: {0}")]
    AgentDb(String),
    /// The database failed.
    #[error("the service's database failed; see the service's log")]
    Store(#[from] StoreError),
    /// The database was damaged, and may not have all snapshots yet.
    #[error(
        "the service's database is being rebuilt, and snapshots may be missing in it: {reason}; retry later; GET \
         /status lists what is left to search"
    )]
    Rebuilding { reason: String },
    /// The client has disconnected, so the work was cancelled.
    #[error("the client has disconnected")]
    Cancelled,
    /// A bug in this service.
    #[error("internal error; see the service's log")]
    Internal(String),
}

impl Error {
    /// Converts an I/O error of `step`.
    pub(crate) fn of_step(step: impl Into<String>, source: io::Error) -> Self {
        let step = step.into();
        if let Some(unavailable) = Unavailable::of(&source) {
            return Self::Unavailable(format!("{step}: the repository {unavailable}"));
        }
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::NoSpace { step },
            Some(Errno::EROFS) => Self::ReadOnly { step },
            _ => Self::Io { step, cause: source.to_string() },
        }
    }

    /// The refusal of a request that needs `permission`.
    pub(crate) fn forbidden(permission: Permission, what: &'static str) -> Self {
        Self::Forbidden { role: permission.least_role(), what }
    }

    /// The role that is missing.
    pub fn missing_role(&self) -> Option<Role> {
        match self.cause() {
            Self::Forbidden { role, .. } => Some(*role),
            _ => None,
        }
    }

    /// The error of `vm`, which is named if it is one of several.
    #[must_use]
    pub(crate) fn of_vm(self, vm: &impl ToString, is_group: bool) -> Self {
        if is_group { Self::OfVm { vm: vm.to_string(), error: Box::new(self) } } else { self }
    }

    /// The error without the note about skipped `post` hooks, and without the VM.
    pub fn cause(&self) -> &Self {
        match self {
            Self::PostHooksSkipped { error, .. } | Self::OfVm { error, .. } => error.cause(),
            _ => self,
        }
    }

    /// The error for a user, with the names of the other VMs that the user may see.
    #[must_use]
    pub(crate) fn seen_by(self, user: &impl Sight) -> Self {
        let boxed = |error: Box<Self>| Box::new(error.seen_by(user));
        match self {
            Self::NotSnapshottable(reason) => Self::NotSnapshottable(reason.seen_by(user).into()),
            Self::Refused(Refusal::UnfitDisk { device, reason }) => {
                Refusal::UnfitDisk { device, reason: reason.seen_by(user).into() }.into()
            }
            Self::PostHooksSkipped { error, hooks } => Self::PostHooksSkipped { error: boxed(error), hooks },
            Self::OfVm { vm, error } => Self::OfVm { vm, error: boxed(error) },
            error => error,
        }
    }

    /// Whether the request or the policy is the cause, and not the host, the manager or this service.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::PostHooksSkipped { error, .. } | Self::OfVm { error, .. } => error.is_refusal(),
            Self::BadRequest(_)
            | Self::BadCredentials
            | Self::NoSession(_)
            | Self::UnknownCertificate(_)
            | Self::NotAnOperator { .. }
            | Self::CrossSite
            | Self::Forbidden { .. }
            | Self::NotInTicket(_)
            | Self::NotFound(_)
            | Self::SnapshotGone
            | Self::NoVm
            | Self::OtherVm(_)
            | Self::NotOlder(_)
            | Self::Refused(_)
            | Self::NotSnapshottable(_)
            | Self::BaseLost { .. }
            | Self::FullRequired { .. }
            | Self::SnapshotLost { .. }
            | Self::NotAdopted { .. }
            | Self::TooManyFailures { .. }
            | Self::BadRefreshToken
            | Self::Throttled => true,
            Self::RepositoryUnavailable { .. }
            | Self::VmBusy { .. }
            | Self::Unavailable(_)
            | Self::BaseUnstable { .. }
            | Self::ContentCheckRunning { .. }
            | Self::ManagerUnavailable(_)
            | Self::NotRemoved { .. }
            | Self::HookFailed { .. }
            | Self::NotQuiesced(_)
            | Self::CloneTimeout { .. }
            | Self::NoSpace { .. }
            | Self::NoRoomForCopy(_)
            | Self::ReadOnly { .. }
            | Self::Io { .. }
            | Self::AgentDb(_)
            | Self::Store(_)
            | Self::Rebuilding { .. }
            | Self::Cancelled
            | Self::Internal(_) => false,
        }
    }

    /// Details for the log only, which the caller does not get.
    pub fn hidden_cause(&self) -> Option<String> {
        match self {
            Self::ManagerUnavailable(cause) | Self::Internal(cause) => Some(cause.clone()),
            Self::Store(cause) => Some(cause.to_string()),
            Self::PostHooksSkipped { error, .. } | Self::OfVm { error, .. } => error.hidden_cause(),
            _ => None,
        }
    }
}

impl From<LoginError> for Error {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Refused => Self::BadCredentials,
            LoginError::Unavailable(cause) | LoginError::Unclear(cause) => Self::ManagerUnavailable(cause),
            error @ LoginError::NoPasswordRequired(_) => Self::ManagerUnavailable(error.to_string()),
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
