//! Pure types and algorithms: no I/O, no clock, no async.

pub mod access;
pub mod annotations;
pub mod chunk;
pub mod definition;
mod described;
pub mod diff;
mod event_kind;
pub mod exclusive;
pub mod extent_map;
mod hex;
pub mod hook;
pub mod id;
pub mod layout;
mod path_segment;
mod pending_hooks_key;
pub mod printable;
mod range;
pub mod retention;
mod size;
pub mod snapshot;
pub mod unfinished;

pub use access::{AccessRule, AccessRules, FoldedName, Grant, Grants, Permission, Resource, Role, User};
pub use annotations::{Annotations, LabelSelector};
pub use chunk::{Chunk, ChunkKind};
pub use definition::Definition;
pub use described::{Described, RequestKey};
pub use event_kind::{EventKind, EventPattern};
pub use extent_map::{Backing, Extent, ExtentMap};
pub use hex::hex;
pub use hook::{Consistency, HookKind, HookOutcome, HookRun, HookStage};
pub use id::{DiskName, RepositoryId, SnapshotId, VmId};
pub use path_segment::path_segment;
pub use pending_hooks_key::PendingHooksKey;
pub use printable::{is_printable, printable};
pub use range::{ByteRange, PhysAddr};
pub use retention::Lease;
pub use size::size;
pub use snapshot::{
    DiskSource, FileIdentity, Provenance, Seal, Snapshot, SnapshotDisk, SnapshotPair, UnfitPair, VolumeId,
};
pub use unfinished::{PlannedDisk, SnapshotDraft, SnapshotFile, SnapshotFiles, UnfinishedSnapshot};
