//! The next restore point of a VM.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::directory::{BackupDir, Points, VmDir, VmLock, make_directory};
use super::disk::Disk;
use super::disk_work::{self, Preparation};
use super::error::{AtPath, BackupError, Result};
use super::features::Features;
use super::files;
use super::finish;
use super::leases::Leases;
use super::point::{Base, Format, Point, PointVm, StoredPoint, VERSION};
use super::progress::{Event, Progress};
use super::rate::Rate;
use super::transfer::{self, Means};
use super::work::{Work, WorkDisk};
use crate::client::{Client, ClientError, Created, NewSnapshot, Server};
use crate::model::{DiskName, SnapshotId, VmId};
use crate::sys::folder::Folder;

/// The label that names the backup directory a snapshot belongs to.
pub const LABEL: &str = "backup-directory";

/// An attempt may find one obstacle and remove it.
const MAX_ATTEMPTS: u32 = 3;

/// The snapshot is gone, or its bytes are: it cannot be used any more.
const LOST: &[&str] = &["not_found", "http_404", "snapshot_lost", "idempotency_key_spent", "idempotency_key_reused"];

pub struct Options {
    pub connections: usize,
    pub digests: bool,
    pub rate: Rate,
    pub request: NewSnapshot,
    /// `None`: raw if the file system can clone files, else qcow2.
    pub format: Option<Format>,
}

/// A new restore point.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub point: Point,
    pub transferred_bytes: u64,
    pub duration: Duration,
    /// It goes on with the work of an earlier run.
    pub was_resumed: bool,
}

/// A VM to back up, with everything that its backup needs.
pub struct VmBackup<'a> {
    pub server: &'a Server,
    pub features: &'a Features,
    pub directory: &'a BackupDir,
    pub vm: PointVm,
    pub options: &'a Options,
    pub progress: &'a dyn Progress,
}

impl VmBackup<'_> {
    /// Makes the next restore point, or completes an unfinished one.
    ///
    /// # Errors
    /// What is done stays for the next run.
    pub fn run(&self) -> Result<Outcome> {
        let id: VmId = self.vm.id.parse().map_err(|error| BackupError::Unusable(format!("{}: {error}", self.vm.id)))?;
        let directory = self.directory.vm(&id);
        let lock = directory.lock()?;
        let (client, points) = (self.server.client()?, directory.points()?);
        let run = Run { backup: self, client, points, directory, lock, ignores_bases: Cell::new(false) };
        for damaged in &run.points.damaged {
            run.note(format!("the restore point {} is damaged and not used: {}", damaged.id, damaged.error));
        }
        for _ in 1..MAX_ATTEMPTS {
            match run.attempt() {
                Err(error) if run.recover(&error)? => {}
                result => return result,
            }
        }
        run.attempt()
    }
}

/// A run that has the VM's directory to itself.
struct Run<'a> {
    backup: &'a VmBackup<'a>,
    client: Client,
    directory: VmDir,
    lock: VmLock,
    points: Points,
    /// A base has decayed: whole disks are copied.
    ignores_bases: Cell<bool>,
}

impl Run<'_> {
    /// Removes what keeps this run from succeeding. Returns whether another attempt makes sense.
    fn recover(&self, error: &BackupError) -> Result<bool> {
        let partial = self.directory.partial();
        let Some(mut work) = Work::read(&partial)? else { return Ok(false) };
        match error {
            BackupError::Client(error) if error.code().is_some_and(|code| LOST.contains(&code)) => {
                if error.status() == Some(404) && self.has_snapshot(&work)? {
                    return Ok(false);
                }
                self.note(format!("the snapshot of the unfinished backup is lost ({error}); starting again"));
                self.discard()?;
            }
            BackupError::Damaged(problem) if !self.ignores_bases.get() => {
                self.note(format!("{problem}; copying whole disks instead"));
                self.ignores_bases.set(true);
                self.forget_disks(&mut work)?;
            }
            BackupError::Client(ClientError::Changed(_)) | BackupError::Damaged(_) => {
                self.note(format!("{error}; comparing again"));
                self.forget_disks(&mut work)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the service lists the snapshot of the work: then an answer that it is missing is wrong.
    fn has_snapshot(&self, work: &Work) -> Result<bool> {
        let Some(snapshot) = &work.snapshot else { return Ok(false) };
        let there = self.client.snapshots(&self.backup.vm.id)?;
        Ok(there.iter().any(|it| it.id == snapshot.id))
    }

    fn attempt(&self) -> Result<Outcome> {
        let started = Instant::now();
        let expected = self.expected()?;
        // Before anything is made or removed: a host that lacks them may not be of the pool.
        self.client.check_pool(&self.backup.vm.id, &expected)?;
        let (mut work, was_resumed) = self.begin()?;
        let snapshot = self.snapshot(&mut work)?;
        // Afterwards: a base can expire while the snapshot is made, and another host may have made it.
        let there = self.client.snapshots_with(&self.backup.vm.id, &expected)?;
        let is_there = |id: &str| there.iter().any(|snapshot| snapshot.id == id);
        let points = if self.ignores_bases.get() { &[] } else { &self.points.whole[..] };
        let base = newest(points, &|stored| is_there(&stored.point.snapshot_id));
        let leases = self.lease(&snapshot, base.filter(|base| is_there(&base.point.snapshot_id)));
        if work.disks.is_none() {
            self.step("comparing".to_owned());
            self.forget_disks(&mut work)?;
            let preparation = Preparation {
                client: &self.client,
                features: self.backup.features,
                leases: &leases,
                progress: self.backup.progress,
                vm: &self.backup.vm,
                snapshot: &snapshot,
                points,
                is_there: &is_there,
                partial: self.directory.partial(),
                format: self.backup.options.format,
            };
            work.disks = Some(disk_work::plan(&preparation)?);
            work.base = base.map(|StoredPoint { point, .. }| Base {
                point: point.id.clone(),
                snapshot_id: point.snapshot_id.clone(),
            });
            work.write(&self.directory.partial())?;
        }
        let work_disks: Vec<WorkDisk> = work.disks.iter().flatten().cloned().collect();
        let mut disks = Vec::new();
        for disk in &work_disks {
            disks.push(disk_work::open(&self.directory, &self.backup.vm, &snapshot.id, disk)?);
        }
        let transferred_bytes = self.transfer(&disks, &leases)?;
        let point = self.complete(&work, &snapshot, &work_disks, &disks).inspect_err(|error| {
            if let BackupError::Local { .. } = error {
                // After a failed sync the page cache may have bytes that the disk lacks, so nothing counts as done.
                let _ = disk_work::forget_progress(&self.directory.partial());
            }
        })?;
        self.delete_old_snapshots(&there, &point);
        leases.end(&self.client);
        Ok(Outcome { point, transferred_bytes, duration: started.elapsed(), was_resumed })
    }

    /// The snapshots on which the next point stands.
    fn expected(&self) -> Result<Vec<String>> {
        let work = Work::read(&self.directory.partial())?;
        let base = self.points.whole.last().map(|stored| stored.point.snapshot_id.clone());
        Ok(work.and_then(|work| work.snapshot).map(|snapshot| snapshot.id).into_iter().chain(base).collect())
    }

    /// The unfinished work, or new work.
    fn begin(&self) -> Result<(Work, bool)> {
        let partial = self.directory.partial();
        if let Some(newest) = self.points.whole.last() {
            // A crash may have left them.
            remove_notes(&newest.directory)?;
        }
        let request = self.request();
        if let Some(mut work) = Work::read(&partial)? {
            if work.request == request {
                let is_kept = |point: &str| self.points.whole.iter().any(|it| it.point.id == point);
                let mut bases = work.disks.iter().flatten().filter_map(|disk| disk.base.as_ref());
                if !bases.all(|base| is_kept(&base.point)) {
                    self.note("the base of the unfinished backup was removed; comparing again".to_owned());
                    self.forget_disks(&mut work)?;
                }
                self.step("resuming the unfinished backup".to_owned());
                return Ok((work, true));
            }
            self.note("the unfinished backup has other options; starting again".to_owned());
        }
        self.discard()?;
        make_directory(&partial)?;
        let work = Work::new(self.backup.vm.clone(), self.backup.server.to_string(), request);
        work.write(&partial)?;
        Ok((work, false))
    }

    /// What is asked of the service. It marks the snapshots of this backup directory.
    fn request(&self) -> NewSnapshot {
        let mut request = self.backup.options.request.clone();
        if self.backup.features.labels {
            request.labels.insert(LABEL.to_owned(), self.backup.directory.id().to_owned());
        }
        request
    }

    /// Drops the unfinished work and its snapshot.
    fn discard(&self) -> Result<()> {
        let partial = self.directory.partial();
        if let Some(mut work) = Work::read(&partial)? {
            if work.snapshot.is_none() && self.backup.features.idempotency {
                // The key tells whether the snapshot was made. If it was not, it is made now, and deleted.
                work.snapshot = self.client.create(&self.backup.vm.id, &work.request, Some(&work.key)).ok();
            }
            if let Some(snapshot) = &work.snapshot {
                self.client.delete(&self.backup.vm.id, &snapshot.id)?;
            }
        }
        self.directory.remove(&partial, &self.lock)
    }

    /// The snapshot of this work, which is created if there is none.
    fn snapshot(&self, work: &mut Work) -> Result<Created> {
        if let Some(snapshot) = &work.snapshot {
            return Ok(snapshot.clone());
        }
        self.step("creating the snapshot".to_owned());
        let key = self.backup.features.idempotency.then_some(work.key.as_str());
        let created: Created = self.client.create(&self.backup.vm.id, &work.request, key)?;
        if let Some(disk) = created.disks.iter().find(|disk| disk.name.parse::<DiskName>().is_err()) {
            return Err(ClientError::Protocol(format!("the disk name {:?} is not valid", disk.name)).into());
        }
        if created.id.parse::<SnapshotId>().is_err() {
            return Err(ClientError::Protocol(format!("the snapshot id {:?} is not valid", created.id)).into());
        }
        work.snapshot = Some(created.clone());
        work.requested_at = Some(Timestamp::now());
        work.write(&self.directory.partial())?;
        Ok(created)
    }

    fn lease(&self, snapshot: &Created, base: Option<&StoredPoint>) -> Leases {
        if !self.backup.features.leases {
            return Leases::none();
        }
        let base = base.map(|base| base.point.snapshot_id.clone());
        let snapshots = [Some(snapshot.id.clone()), base].into_iter().flatten().collect();
        Leases::take(&self.client, &self.backup.vm.id, snapshots)
    }

    /// Removes the images of the unfinished work, but not its snapshot.
    fn forget_disks(&self, work: &mut Work) -> Result<()> {
        let partial = self.directory.partial();
        if work.disks.take().is_some() {
            work.write(&partial)?;
        }
        Work::remove_all_else(&partial)
    }

    fn transfer(&self, disks: &[Disk], leases: &Leases) -> Result<u64> {
        self.step("transferring".to_owned());
        for disk in disks {
            let done: u64 = disk.done.iter().map(|range| range.end - range.start).sum();
            let bytes = disk.plan.data_bytes().saturating_sub(done);
            self.event(&Event::DiskStarted { disk: &disk.label, bytes });
            finish::apply_zeros(disk)?;
        }
        let VmBackup { server, features, options, progress, .. } = *self.backup;
        let means = Means {
            server,
            connections: options.connections,
            ranges: features.ranges,
            digests: options.digests && features.content_digest,
            rate: &options.rate,
            leases,
            progress,
        };
        transfer::run(disks, &means)
    }

    /// Makes the point visible, when all its bytes are on stable storage.
    fn complete(&self, work: &Work, snapshot: &Created, work_disks: &[WorkDisk], disks: &[Disk]) -> Result<Point> {
        self.step("completing".to_owned());
        let partial = self.directory.partial();
        let folder = Folder::open(self.directory.path()).at(self.directory.path())?;
        let mut point_disks = Vec::new();
        for (disk, work_disk) in disks.iter().zip(work_disks) {
            let mut point_disk = work_disk.disk.clone();
            point_disk.checksum.value =
                finish::finish(disk, work_disk, &self.directory, &folder, self.backup.options.connections)?;
            point_disks.push(point_disk);
            self.event(&Event::DiskDone { disk: &disk.label });
        }
        let completed_at = Timestamp::now();
        let created_at = snapshot.created_at.or(work.requested_at).unwrap_or(completed_at);
        let point = Point {
            version: VERSION,
            id: self.free_id(created_at),
            number: self.points.whole.iter().map(|stored| stored.point.number).max().unwrap_or(0) + 1,
            vm: work.vm.clone(),
            server: work.server.clone(),
            snapshot_id: snapshot.id.clone(),
            base: work.base.clone(),
            created_at,
            completed_at,
            consistency: snapshot.consistency.clone().unwrap_or_else(|| "unknown".to_owned()),
            consistency_reason: snapshot.consistency_reason.clone(),
            freeze_ms: snapshot.freeze_ms,
            hooks: snapshot.hooks.clone(),
            labels: snapshot.labels.clone(),
            description: snapshot.description.clone(),
            definition: snapshot.definition.clone(),
            disks: point_disks,
        };
        point.write(&partial)?;
        let directory = self.directory.point_path(&point.id);
        // Until the rename another run can go on, so the notes go after it.
        std::fs::rename(&partial, &directory).at(&directory)?;
        files::sync_directory(self.directory.path()).at(self.directory.path())?;
        remove_notes(&directory)?;
        Ok(point)
    }

    fn free_id(&self, created_at: Timestamp) -> String {
        let id = Point::id_at(created_at);
        let is_free = |id: &String| !self.directory.point_path(id).exists();
        let numbered = (2..).map(|number| format!("{id}-{number}"));
        std::iter::once(id.clone()).chain(numbered).find(is_free).unwrap_or_default()
    }

    /// Deletes the snapshots of older points, and those that a lost run of this directory left. The next run tries
    /// again what fails here.
    fn delete_old_snapshots(&self, there: &[Created], point: &Point) {
        let own = self.backup.directory.id();
        let is_ours = |snapshot: &Created| {
            let of_point = self.points.whole.iter().any(|it| it.point.snapshot_id == snapshot.id);
            of_point || snapshot.labels.get(LABEL).is_some_and(|label| label == own)
        };
        for snapshot in there.iter().filter(|snapshot| snapshot.id != point.snapshot_id && is_ours(snapshot)) {
            if let Err(error) = self.client.delete(&self.backup.vm.id, &snapshot.id) {
                self.note(format!("the old snapshot {} could not be deleted: {error}", snapshot.id));
            }
        }
    }

    fn step(&self, text: String) {
        self.event(&Event::Step { vm: &self.backup.vm.name, text });
    }

    fn note(&self, text: String) {
        self.event(&Event::Note { vm: &self.backup.vm.name, text });
    }

    fn event(&self, event: &Event<'_>) {
        self.backup.progress.event(event);
    }
}

/// The newest point that is preferred, or else the newest. The clock of a service may go back, so the point of the last
/// backup need not be the one with the latest time; its snapshot is there.
fn newest<'a>(points: &'a [StoredPoint], is_preferred: &dyn Fn(&StoredPoint) -> bool) -> Option<&'a StoredPoint> {
    points.iter().rev().find(|stored| is_preferred(stored)).or(points.last())
}

/// Removes what only the work on a point needed.
fn remove_notes(directory: &Path) -> Result<()> {
    disk_work::remove_notes(directory)?;
    Work::remove_file(directory)
}
