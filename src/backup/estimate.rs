//! What a backup would transfer.

use serde::Serialize;

use super::disk_work::{api_path, newest_with_disk};
use super::error::{BackupError, Result};
use super::leases::Leases;
use super::planning::{self, Question};
use super::point::StoredPoint;
use super::vm_backup::VmBackup;
use crate::api::Mode;
use crate::client::{Client, Created, NewSnapshot};
use crate::model::VmId;

/// The service removes the snapshot if this program cannot.
const TTL: &str = "1h";

#[derive(Clone, Debug, Serialize)]
pub struct DiskEstimate {
    pub name: String,
    pub mode: Mode,
    pub size: u64,
    pub data_bytes: u64,
    pub zero_bytes: u64,
}

impl VmBackup<'_> {
    /// Creates a snapshot, compares it with the newest point, and deletes it.
    ///
    /// # Errors
    /// The snapshot cannot be made or compared.
    pub fn estimate(&self) -> Result<Vec<DiskEstimate>> {
        let id: VmId = self.vm.id.parse().map_err(|error| BackupError::Unusable(format!("{}: {error}", self.vm.id)))?;
        let points = self.directory.vm(&id).points()?.whole;
        let client = self.server.client()?;
        let base = points.last().map(|stored| stored.point.snapshot_id.clone());
        let there = client.snapshots_with(&self.vm.id, base.as_slice())?;
        let ttl = (!self.features.is_original).then(|| TTL.to_owned());
        // A look should not freeze the guest.
        let quiesce = self.features.quiesce.then(|| "skip".to_owned());
        let request = NewSnapshot { ttl, quiesce, ..self.options.request.clone() };
        let key = self.features.idempotency.then(|| uuid::Uuid::new_v4().to_string());
        let snapshot = client.create(&self.vm.id, &request, key.as_deref())?;
        let disks = self.estimate_disks(&client, &snapshot, &points, &there);
        client.delete(&self.vm.id, &snapshot.id)?;
        disks
    }

    fn estimate_disks(
        &self,
        client: &Client,
        snapshot: &Created,
        points: &[StoredPoint],
        there: &[Created],
    ) -> Result<Vec<DiskEstimate>> {
        let (mut disks, leases) = (Vec::new(), Leases::none());
        for disk in &snapshot.disks {
            let path = api_path(&self.vm.id, &snapshot.id, &disk.name);
            let (size, _) = client.head(&path)?;
            let base = newest_with_disk(points, &disk.name, &|id| there.iter().any(|it| it.id == id));
            let answer = planning::plan(&Question {
                client,
                features: self.features,
                leases: &leases,
                vm: &self.vm.id,
                snapshot: &snapshot.id,
                disk: &disk.name,
                path: &path,
                size,
                base,
                base_is_there: base.is_some_and(|base| there.iter().any(|it| it.id == base.point.snapshot_id)),
            })?;
            let (data_bytes, zero_bytes) = (answer.plan.data_bytes(), answer.plan.zero_bytes());
            disks.push(DiskEstimate { name: disk.name.clone(), mode: answer.mode, size, data_bytes, zero_bytes });
        }
        Ok(disks)
    }
}
