//! What hooks are told: which operation, on what, and which half of it.

use serde::{Deserialize, Serialize};

use crate::model::HookStage;

/// What is done between the two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A snapshot is made.
    SnapshotCreate,
    /// A snapshot is deleted.
    SnapshotDelete,
}

impl Operation {
    /// The word for it: the first argument of a program.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SnapshotCreate => "snapshot-create",
            Self::SnapshotDelete => "snapshot-delete",
        }
    }
}

/// One operation that hooks are called around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What is done.
    pub operation: Operation,
    /// Id of the snapshot.
    pub snapshot_id: String,
    /// Whose it is.
    pub vm: EventVm,
    /// Its disks.
    pub disks: Vec<EventDisk>,
    /// The server in the guest, where one is to be asked.
    pub sync: Option<SyncTarget>,
}

/// A virtual machine, as hooks know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventVm {
    /// Its name: 32 hexadecimal digits.
    pub name: String,
    /// Its uuid, dashed.
    pub uuid: String,
    /// The name that people gave it; empty where it has left the inventory.
    pub friendly_name: String,
}

/// A disk, as hooks know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDisk {
    /// Its name in the snapshot.
    pub name: String,
    /// Where the VM's disk lies.
    pub path: String,
    /// Where the snapshot's file lies, or will.
    pub snapshot_path: String,
    /// Size, bytes.
    pub size: u64,
}

/// Where a guest's sync server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncTarget {
    /// At this URL.
    Url(String),
    /// One is asked for, and cannot be found: why.
    Unknown(String),
}

/// What a program gets on its standard input.
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
    /// The message to programs: one line of JSON. `done` is how the operation ended, once it has.
    pub(super) fn message(&self, stage: HookStage, done: Option<bool>) -> Vec<u8> {
        let outcome = done.map(|done| if done { "ok" } else { "failed" });
        let data = Data { snapshot_id: &self.snapshot_id, vm: &self.vm, disks: &self.disks, outcome };
        let message = Message { action: self.operation.as_str(), stage: stage.as_str(), data };
        // Only maps with keys that are no strings, and failing writers, make this fail.
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
    fn programs_are_told_in_one_line_of_json() {
        let event = example();
        let text = event.message(HookStage::Pre, None);
        assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1));
        let pre: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(pre.as_object().unwrap().keys().collect::<Vec<_>>(), ["action", "data", "stage"]);
        assert_eq!((&pre["action"], &pre["stage"]), (&json!("snapshot-create"), &json!("pre")));
        assert_eq!(pre["data"]["vm"]["friendly_name"], "wéb \"1\"\n");
        assert_eq!(pre["data"]["disks"][0]["path"], "/r/VirtualDisks/a.img");
        assert!(pre["data"].get("outcome").is_none() && pre["data"].get("sync").is_none(), "{pre}");
        for (done, outcome) in [(true, "ok"), (false, "failed")] {
            let post: Value = serde_json::from_slice(&event.message(HookStage::Post, Some(done))).unwrap();
            assert_eq!((&post["stage"], &post["data"]["outcome"]), (&json!("post"), &json!(outcome)));
        }
    }
}
