//! The description of an operation that hooks get.

use serde::{Deserialize, Serialize};

use crate::model::{HookStage, PendingHooksKey, SnapshotId};

/// An operation with hooks around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    SnapshotCreate,
    SnapshotDelete,
}

impl Operation {
    /// The first argument of a program.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SnapshotCreate => "snapshot-create",
            Self::SnapshotDelete => "snapshot-delete",
        }
    }

    /// The key of the pending hooks of this operation on `snapshot`.
    pub fn pending_hooks_key(self, snapshot: SnapshotId) -> PendingHooksKey {
        match self {
            Self::SnapshotCreate => PendingHooksKey::of_creation(snapshot),
            Self::SnapshotDelete => PendingHooksKey::of_deletion(snapshot),
        }
    }
}

/// Why a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CallReason {
    Pre,
    PostSuccess,
    PostFailure,
}

impl CallReason {
    pub(super) fn post(succeeded: bool) -> Self {
        if succeeded { Self::PostSuccess } else { Self::PostFailure }
    }

    pub(super) fn stage(self) -> HookStage {
        match self {
            Self::Pre => HookStage::Pre,
            Self::PostSuccess | Self::PostFailure => HookStage::Post,
        }
    }

    /// How the operation ended, in the message to programs.
    fn outcome(self) -> Option<&'static str> {
        match self {
            Self::Pre => None,
            Self::PostSuccess => Some("ok"),
            Self::PostFailure => Some("failed"),
        }
    }
}

/// One operation on one snapshot. It is stored with the pending hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub operation: Operation,
    pub snapshot_id: String,
    pub vm: EventVm,
    pub disks: Vec<EventDisk>,
    /// The server in the guest, if it is to be asked.
    pub sync: Option<SyncTarget>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventVm {
    /// 32 hexadecimal digits.
    pub name: String,
    /// With dashes.
    pub uuid: String,
    /// Empty if the VM has left the inventory.
    pub friendly_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDisk {
    /// The name in the snapshot.
    pub name: String,
    /// The path of the VM's disk.
    pub path: String,
    /// The path of the snapshot's file. Before the creation it does not exist yet.
    pub snapshot_path: String,
    /// In bytes.
    pub size: u64,
}

/// Where a guest's sync server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncTarget {
    Url(String),
    /// The VM asks for it, but its server cannot be found; the reason.
    Unknown(String),
}

/// The standard input of a program.
#[derive(Serialize)]
struct Message<'a> {
    action: &'static str,
    stage: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    snapshot_id: &'a str,
    vm: &'a EventVm,
    disks: &'a [EventDisk],
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
}

impl Event {
    /// The message to programs: one line of JSON.
    pub(super) fn message(&self, reason: CallReason) -> Vec<u8> {
        let (stage, outcome) = (reason.stage(), reason.outcome());
        let data = Data { snapshot_id: &self.snapshot_id, vm: &self.vm, disks: &self.disks, outcome };
        let message = Message { action: self.operation.as_str(), stage: stage.as_str(), data };
        // It only fails for maps with keys that are not strings.
        let mut text = serde_json::to_vec(&message).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

#[cfg(test)]
pub(super) fn example() -> Event {
    Event {
        operation: Operation::SnapshotCreate,
        snapshot_id: "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d".to_owned(),
        vm: EventVm {
            name: "0004fb00000600000000000000000001".to_owned(),
            uuid: "0004fb00-0006-0000-0000-000000000001".to_owned(),
            friendly_name: "wéb \"1\"\n".to_owned(),
        },
        disks: vec![EventDisk {
            name: "a.img".to_owned(),
            path: "/r/VirtualDisks/a.img".to_owned(),
            snapshot_path: "/r/CoriolisSnapshots/6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d/a.img".to_owned(),
            size: 4096,
        }],
        sync: Some(SyncTarget::Url("https://10.0.0.5:1727".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_message_to_programs_is_one_line_of_json() {
        let event = example();
        let text = event.message(CallReason::Pre);
        assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1));
        let pre: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(pre.as_object().unwrap().keys().collect::<Vec<_>>(), ["action", "data", "stage"]);
        assert_eq!((&pre["action"], &pre["stage"]), (&json!("snapshot-create"), &json!("pre")));
        assert_eq!(pre["data"]["vm"]["friendly_name"], "wéb \"1\"\n");
        assert_eq!(pre["data"]["disks"][0]["path"], "/r/VirtualDisks/a.img");
        assert!(pre["data"].get("outcome").is_none() && pre["data"].get("sync").is_none(), "{pre}");
        for (succeeded, outcome) in [(true, "ok"), (false, "failed")] {
            let post: Value = serde_json::from_slice(&event.message(CallReason::post(succeeded))).unwrap();
            assert_eq!((&post["stage"], &post["data"]["outcome"]), (&json!("post"), &json!(outcome)));
        }
    }
}
