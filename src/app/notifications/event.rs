//! What happened, with the data that webhooks get.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::api;
use crate::app::Error;
use crate::hooks::PendingPostHooks;
use crate::model::{EventKind, HookRun, Snapshot, SnapshotId, VmId};

/// What happened.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(super) kind: EventKind,
    /// Receivers drop an event whose id they know. It has no dot, which separates the parts of what is signed.
    pub(super) id: String,
    data: Option<Box<RawValue>>,
}

impl Event {
    /// Something that can happen again.
    pub(crate) fn new(kind: EventKind, data: &impl Serialize) -> Self {
        Self::with_id(kind, uuid::Uuid::new_v4().to_string(), data)
    }

    fn with_id(kind: EventKind, id: String, data: &impl Serialize) -> Self {
        // It only fails for maps with keys that are not strings.
        Self { kind, id, data: to_raw_value(data).ok() }
    }

    /// Something that happens to a snapshot once: after a crash the event gets the same id again.
    fn of_snapshot(kind: EventKind, id: SnapshotId, what: &str, data: &impl Serialize) -> Self {
        Self::with_id(kind, format!("{id}-{what}"), data)
    }

    pub(crate) fn snapshot_created(snapshot: &Snapshot, expires_at: Option<Timestamp>) -> Self {
        let data = describe(snapshot, expires_at);
        Self::of_snapshot(EventKind::SnapshotCreated, snapshot.id, "created", &data)
    }

    /// `user` has requested the deletion.
    pub(crate) fn snapshot_deleted(snapshot: &Snapshot, cause: api::DeletionCause, user: Option<&str>) -> Self {
        let (cause, deleted_by) = (Some(cause), user.map(str::to_owned));
        let data = api::SnapshotEvent { cause, deleted_by, ..describe(snapshot, None) };
        Self::of_snapshot(EventKind::SnapshotDeleted, snapshot.id, "deleted", &data)
    }

    /// A creation had begun, and has failed. `cause` is the user who requested it and the error, if they are known.
    fn creation_failed(id: SnapshotId, vm: &VmId, cause: Option<(&str, &Error)>, details: String) -> Self {
        let data = api::FailureEvent {
            vm_id: vm.to_string(),
            snapshot_id: id.to_string(),
            user: cause.map(|(user, _)| user.to_owned()),
            code: cause.map(|(_, error)| error.code()),
            details,
        };
        Self::of_snapshot(EventKind::SnapshotFailed, id, "failed", &data)
    }

    /// A creation that had begun has failed. `user` has requested it.
    pub(crate) fn snapshot_failed(id: SnapshotId, vm: &VmId, user: &str, error: &Error) -> Self {
        Self::creation_failed(id, vm, Some((user, error)), error.to_string())
    }

    /// The service ended while it created a snapshot.
    pub(crate) fn snapshot_interrupted(id: SnapshotId, vm: &VmId) -> Self {
        let details = "the service ended while it created this snapshot; request a new one";
        Self::creation_failed(id, vm, None, details.to_owned())
    }

    /// A creation ended, and its record does not say that it has failed.
    pub(crate) fn snapshot_unfinished(id: SnapshotId, vm: &VmId) -> Self {
        let details = "an internal error ended the creation of this snapshot; the service's log has details";
        Self::creation_failed(id, vm, None, details.to_owned())
    }

    /// Hooks of an operation have failed: these calls.
    pub(crate) fn hooks_failed(operation: &PendingPostHooks, calls: &[HookRun], will_retry: bool) -> Self {
        Self::of_hooks(EventKind::HookFailed, operation, "failed", calls, will_retry)
    }

    /// Post hooks of an operation have failed for so long that they are not called any more.
    pub(crate) fn hooks_given_up(operation: &PendingPostHooks, calls: &[HookRun]) -> Self {
        Self::of_hooks(EventKind::HookFailed, operation, "given-up", calls, false)
    }

    /// Post hooks of an operation have failed before, and have succeeded now, with these calls.
    pub(crate) fn hooks_recovered(operation: &PendingPostHooks, calls: &[HookRun]) -> Self {
        Self::of_hooks(EventKind::HookRecovered, operation, "recovered", calls, false)
    }

    /// Something that happens to an operation with hooks once: after a crash the event gets the same id again.
    fn of_hooks(
        kind: EventKind,
        operation: &PendingPostHooks,
        what: &str,
        calls: &[HookRun],
        will_retry: bool,
    ) -> Self {
        let event = &operation.event;
        let data = api::HookEvent {
            operation: event.operation.as_str().to_owned(),
            snapshot_id: event.snapshot_id.clone(),
            vm_id: event.vm.name.clone(),
            hooks: calls.iter().map(api::HookRun::from).collect(),
            will_retry,
        };
        match operation.call_prefix.as_str() {
            // An earlier version has stored it.
            "" => Self::new(kind, &data),
            id => Self::with_id(kind, format!("{id}-{what}"), &data),
        }
    }

    /// The body, as it waits in the database.
    pub(super) fn body(&self, host: &str, exporter: &str) -> Vec<u8> {
        let notification = api::Notification {
            id: self.id.clone(),
            event: self.kind.as_str().to_owned(),
            time: api::time(Timestamp::now()),
            host: host.to_owned(),
            exporter: exporter.to_owned(),
            schema: api::NOTIFICATION_SCHEMA,
            dropped: None,
            data: &self.data,
        };
        serde_json::to_vec(&notification).unwrap_or_default()
    }
}

fn describe(snapshot: &Snapshot, expires_at: Option<Timestamp>) -> api::SnapshotEvent {
    let disks = snapshot.disks.iter();
    api::SnapshotEvent {
        id: snapshot.id.to_string(),
        vm_id: snapshot.vm.to_string(),
        created_at: api::time(snapshot.created_at),
        created_by: snapshot.created_by.clone(),
        consistency: snapshot.provenance.consistency.as_str().to_owned(),
        freeze_ms: snapshot.provenance.freeze_ms,
        expires_at: expires_at.map(api::time),
        labels: snapshot.annotations.labels().clone(),
        description: snapshot.annotations.description().map(str::to_owned),
        disks: disks.map(|disk| api::EventDisk { name: disk.name.to_string(), size: disk.identity.size }).collect(),
        cause: None,
        deleted_by: None,
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::*;

    /// The example has no other members than the data of the event.
    fn is_data<T: DeserializeOwned + Serialize>(example: &Value) -> bool {
        serde_json::from_value::<T>(example.clone()).is_ok_and(|data| serde_json::to_value(data).unwrap() == *example)
    }

    #[test]
    fn each_event_is_documented_with_an_example() {
        let document = include_str!("../../../docs/operations.md");
        for kind in EventKind::ALL.into_iter().chain([EventKind::Test]) {
            let row = document.lines().find(|line| line.starts_with(&format!("| `{}` | ", kind.as_str())));
            let row = row.unwrap_or_else(|| panic!("{} is not documented", kind.as_str()));
            let example = row.trim_end_matches(" |").rsplit("| ").next().unwrap().trim_matches('`');
            if kind == EventKind::SpaceRecovered {
                assert_eq!(example, "as `space.low");
                continue;
            }
            let example: Value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{example}: {error}"));
            let is_right = match kind {
                EventKind::SnapshotCreated | EventKind::SnapshotDeleted => is_data::<api::SnapshotEvent>(&example),
                EventKind::SnapshotFailed => is_data::<api::FailureEvent>(&example),
                EventKind::HookFailed | EventKind::HookRecovered => is_data::<api::HookEvent>(&example),
                EventKind::SpaceLow
                | EventKind::SpaceRecovered
                | EventKind::RepositoryUnavailable
                | EventKind::RepositoryAvailable => is_data::<api::RepositoryEvent>(&example),
                EventKind::CertificateExpiring => is_data::<api::CertificateEvent>(&example),
                EventKind::DatabaseDamaged | EventKind::DatabaseRecovered => is_data::<api::DatabaseEvent>(&example),
                EventKind::Test => is_data::<api::TestEvent>(&example),
            };
            assert!(is_right, "{}: {example}", kind.as_str());
        }
    }
}
