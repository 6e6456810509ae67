//! The codes of errors. They are stable, because programs depend on them.

use serde::{Deserialize, Serialize};
use utoipa::PartialSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

/// Defines the codes: each with its meaning, its text, and the HTTP status that it comes with.
macro_rules! error_codes {
    ($($(#[doc = $meaning:literal])+ $name:ident = $text:literal, $status:literal;)+) => {
        /// Why a request failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $($(#[doc = $meaning])+ $name,)+
            /// A code of a newer server.
            #[serde(other)]
            Unknown,
        }

        impl ErrorCode {
            /// All but [`ErrorCode::Unknown`].
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Unknown => "unknown",
                }
            }

            /// The HTTP status of an error with this code.
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)+
                    Self::Unknown => 500,
                }
            }

            /// When an error has this code, for people.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning),+).trim_ascii(),)+
                    Self::Unknown => "",
                }
            }
        }
    };
}

error_codes! {
    /// A body or a parameter is invalid; the request is not HTTP, or a proxy may read it differently: lines that end
    /// with a bare LF, no `Host` or several, both `Content-Length` and `Transfer-Encoding`.
    BadRequest = "bad_request", 400;
    /// The request came in plain HTTP.
    HttpsRequired = "https_required", 400;
    /// `compareTo` names the same snapshot or a newer one.
    BaseNotOlder = "base_not_older", 400;
    /// The VM has no disk, or one that cannot be cloned; `details` has the disk and the remedy.
    NotSnapshottable = "not_snapshottable", 400;
    /// The VM has no disk of a requested name.
    UnknownDisk = "unknown_disk", 400;
    /// The VM has several disks of a requested name.
    AmbiguousDisk = "ambiguous_disk", 400;
    /// A requested disk cannot be snapshotted.
    UnfitDisk = "unfit_disk", 400;
    /// The request excludes all disks.
    NoDiskLeft = "no_disk_left", 400;
    /// No valid token, or a revoked one, and no certificate that a rule names; the manager refuses the credentials; or a
    /// refresh token is unknown, ended or used.
    Unauthorized = "unauthorized", 401;
    /// The user's roles do not permit the request, and `details` names the role that is needed; or a ticket does not
    /// permit it (`ops`); or the process on the Unix socket is not one of an operator; or a browser sends a client
    /// certificate for a page of another site.
    Forbidden = "forbidden", 403;
    /// No such route, VM, snapshot, disk or valid ticket, or one that the user may not see; or all files of the snapshot
    /// were removed from outside this service.
    NotFound = "not_found", 404;
    /// The route has other methods; see `Allow`.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The request body took longer than 30 s.
    BodyTooSlow = "body_too_slow", 408;
    /// The snapshot belongs to another VM.
    OtherVm = "other_vm", 409;
    /// The base's files are missing or modified: make a full copy into an empty file.
    BaseLost = "base_lost", 409;
    /// The request has `ifFull=error`, and a disk has no base that it can be compared to: transfer it in full.
    FullRequired = "full_required", 409;
    /// This snapshot's files are missing or modified: delete it and make a new one.
    SnapshotLost = "snapshot_lost", 409;
    /// The database does not know the snapshot to delete, and the service cannot tell to which VM or exporter its files
    /// belong. No file is removed; adopt the snapshot first.
    NotAdopted = "not_adopted", 409;
    /// The snapshot is deleted, but a link or a file that the service did not create has the name of one of its files.
    /// The service does not remove it. `details` names it: move it away and delete the snapshot again.
    NotRemoved = "not_removed", 409;
    /// The request has `quiesce: "require"`, and no hook quiesced the guest, or its `post` failed; the snapshot is
    /// removed.
    NotQuiesced = "not_quiesced", 409;
    /// The VM has `policy.max_snapshots_per_vm` snapshots: delete one.
    TooManySnapshots = "too_many_snapshots", 409;
    /// The user has 100 tickets, or all users have 1,000: end some.
    TooManyTickets = "too_many_tickets", 409;
    /// A disk has more extents than `policy.max_extents`: cloning it would block the guest's writes for too long.
    TooManyExtents = "too_many_extents", 409;
    /// The snapshot made with this key has been deleted: use a new key.
    IdempotencyKeySpent = "idempotency_key_spent", 410;
    /// `If-Match` or `If-Unmodified-Since` does not hold.
    PreconditionFailed = "precondition_failed", 412;
    /// A request body over 64 KiB.
    BodyTooLarge = "body_too_large", 413;
    /// A request line over 60 KiB.
    UriTooLong = "uri_too_long", 414;
    /// The Range is malformed, past the end of the disk, or in another unit.
    RangeNotSatisfiable = "range_not_satisfiable", 416;
    /// The key was used with another body: use a new key.
    IdempotencyKeyReused = "idempotency_key_reused", 422;
    /// Too many failed log-ins of the address or the account; too many queued log-ins, snapshots, deletions of one VM's
    /// snapshots, downloads, copies of the database or `cost` requests; or a download waited longer than
    /// `policy.export_wait`. See `Retry-After`.
    Throttled = "throttled", 429;
    /// More than 100 headers, or a request head over 128 KiB.
    HeadersTooLarge = "headers_too_large", 431;
    /// The file system failed.
    IoError = "io_error", 500;
    /// A bug in the service; its log has the details.
    Internal = "internal", 500;
    /// A hook refused the snapshot or its deletion; nothing was done.
    HookFailed = "hook_failed", 502;
    /// The manager is unknown, unreachable or not to be trusted, so the password cannot be checked.
    ManagerUnavailable = "manager_unavailable", 502;
    /// The service's database cannot be read or written.
    DatabaseUnavailable = "database_unavailable", 503;
    /// A repository cannot be written.
    ReadOnly = "read_only", 503;
    /// Another exporter holds the VM's lock; `details` names it. See `Retry-After`.
    VmBusy = "vm_busy", 503;
    /// Cloning the disks took longer than `hooks.timeout`; the snapshot is removed.
    CloneTimeout = "clone_timeout", 503;
    /// A defragmenter keeps moving the base's blocks: try again after `Retry-After`, or make a full copy.
    BaseUnsettled = "base_unsettled", 503;
    /// A file of the snapshot or of the base was modified (a link, a label, an owner), and its content is being checked.
    /// Try again after `Retry-After`.
    SnapshotBeingChecked = "snapshot_being_checked", 503;
    /// A repository is unavailable: one with files of the snapshot, with a disk of the VM, or that may define the VM. Try
    /// again after `Retry-After`. Downloads in progress are cut off.
    RepositoryUnavailable = "repository_unavailable", 503;
    /// The service's database was damaged, and the snapshot was not found so far, or the VM may have more. See
    /// `Retry-After`.
    DatabaseRebuilding = "database_rebuilding", 503;
    /// ovs-agent's database cannot be read, and no repository is known.
    OvsAgentDbUnreadable = "ovs_agent_db_unreadable", 503;
    /// A repository is full, or has less free than `policy.min_free_space`; for `GET /database`, the file system of
    /// `db_file` has no room for a copy.
    InsufficientSpace = "insufficient_space", 507;
}

impl PartialSchema for ErrorCode {
    /// The codes, and in the description the status and the meaning of each.
    fn schema() -> RefOr<Schema> {
        let mut description = "Stable: for programs.\n\n| status | code | when |\n|---|---|---|\n".to_owned();
        for code in Self::ALL {
            description += &format!("| {} | `{}` | {} |\n", code.status(), code.as_str(), code.meaning());
        }
        let codes = Self::ALL.iter().map(|code| code.as_str());
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes)).description(Some(description)).into()
    }
}

impl utoipa::ToSchema for ErrorCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_and_as_str_agree() {
        for code in ErrorCode::ALL {
            let text = serde_json::to_string(code).unwrap();
            assert_eq!(text, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&text).unwrap(), *code);
        }
        assert_eq!(serde_json::from_str::<ErrorCode>("\"future_code\"").unwrap(), ErrorCode::Unknown);
    }
}
