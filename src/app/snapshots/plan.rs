//! Plans a snapshot: finds the disks and opens them, before anything is written.

use std::collections::HashMap;
use std::time::Duration;

use super::admit::request_key;
use super::create_request::{CreateRequest, DiskChoice, RetentionRequest};
use super::service::Snapshots;
use crate::api::Quiesce;
use crate::app::Error;
use crate::app::audit::Actor;
use crate::app::error::Refusal;
use crate::app::inventory::{DiskDecision, choose, classify};
use crate::hooks::{Event, Operation};
use crate::inventory::Problem;
use crate::model::{Definition, DiskName, PlannedDisk, RequestKey, SnapshotDraft, SnapshotId, VmId};
use crate::repository::clone::Source;

/// A planned snapshot: its disks are open and named, but not cloned.
pub(super) struct Plan {
    pub draft: SnapshotDraft,
    pub sources: Vec<Source>,
    pub commit: CommitDetails,
    pub event: Event,
    pub quiesce: Quiesce,
}

/// What the commit records besides the snapshot.
pub(super) struct CommitDetails {
    pub ttl: Option<Duration>,
    pub key: Option<RequestKey>,
    pub definition: Option<Definition>,
}

impl Snapshots {
    /// Finds the disks, and refuses disks that cannot be snapshotted, before anything is written.
    pub(super) fn plan(&self, vm: &VmId, actor: &Actor, request: &CreateRequest) -> Result<Plan, Error> {
        let (vms, definition) = self.inventory.find_vm(vm)?;
        let lines = definition.disks.as_ref().map_err(|problem| match problem {
            Problem::Invalid(text) => Error::NotSnapshottable(text.clone().into()),
            Problem::Unavailable(text) => Error::Unavailable(text.clone()),
        })?;
        let mut files = self.inventory.disk_files(&vms.vms, true);
        files.inspect(std::slice::from_ref(&definition));
        let mut classified = Vec::new();
        for (line, choice) in lines.iter().zip(request.selection.choices(lines)?) {
            let decision = match choice {
                DiskChoice::LeftOut => continue,
                DiskChoice::Usual => classify(&files, &definition.name, line).apply_nobackup_tag().decision,
                DiskChoice::Named => classify(&files, &definition.name, line).decision,
            };
            if let (DiskDecision::LeftOut(reason), DiskChoice::Named) = (&decision, choice) {
                return Err(Refusal::UnfitDisk { device: line.device.clone(), reason: reason.clone() }.into());
            }
            classified.push((line, decision));
        }
        let chosen = choose(classified.iter().map(|(_, decision)| decision)).map_err(|obstacle| {
            let device = obstacle.disk.map(|index| format!("{}: ", classified[index].0.device)).unwrap_or_default();
            let reason = obstacle.reason.after(&device);
            if obstacle.is_temporary { Error::Unavailable(reason.to_string()) } else { Error::NotSnapshottable(reason) }
        })?;
        let mut names: HashMap<usize, DiskName> = chosen.into_iter().collect();
        let (mut disks, mut sources) = (Vec::new(), Vec::new());
        for (index, (_, decision)) in classified.into_iter().enumerate() {
            let (Some(name), DiskDecision::Taken(disk)) = (names.remove(&index), decision) else { continue };
            let opened = files.take(&disk.source).ok_or_else(|| Error::Internal(format!("{name} is not open")))?;
            disks.push(PlannedDisk { name, source: disk.source, size: disk.size, volume: disk.volume });
            let (folder, name) = opened.location;
            sources.push(Source { file: opened.file, folder, name });
        }
        let draft = SnapshotDraft {
            id: SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128()),
            vm: vm.clone(),
            created_at: jiff::Timestamp::now(),
            created_by: actor.user().to_owned(),
            disks,
            annotations: request.annotations.clone(),
        };
        let ttl = match request.retention {
            RetentionRequest::Default => self.admission.policy.limits.get().default_ttl,
            RetentionRequest::UntilDeleted => None,
            RetentionRequest::For(ttl) => Some(ttl),
        };
        let kept = self.inventory.describe(&definition);
        let commit = CommitDetails { ttl, key: request_key(actor, request), definition: kept };
        let event_disks = draft.disks.iter().map(|disk| (&disk.name, &disk.source, disk.size));
        let event = self.hooks.event(Operation::SnapshotCreate, (draft.id, vm), event_disks, Some(&definition));
        Ok(Plan { draft, sources, commit, event, quiesce: request.quiesce })
    }
}
