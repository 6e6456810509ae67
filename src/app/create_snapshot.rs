//! The journey to a new snapshot: plan, intent, clone all disks together, seal, commit.
//!
//! It goes on when the client hangs up. A crash at any step leaves the intent in the database, from
//! which `recover` undoes it; a failure undoes itself.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::vm_disks::{Examiner, Verdict};
use super::{App, Error, find_vm};
use crate::auth::Session;
use crate::model::{DiskName, DiskSource, FileIdentity, InvalidId, Snapshot, SnapshotDisk, SnapshotId, Taken, VmId};
use crate::repository::clone::{self, Cloned, Source};
use crate::repository::{LocatedDisk, SnapshotDir};
use crate::store::State;

/// A snapshot about to be made: its disks open, their names given, their identities not yet known.
struct Plan {
    snapshot: Snapshot,
    sources: Vec<Source>,
}

impl App {
    /// Makes a snapshot of the VM that `called` names: of all its disks, or of none.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotSnapshottable`], [`Error::NoSpace`], [`Error::ReadOnly`],
    /// [`Error::Io`], [`Error::Store`]; nothing is left then.
    pub async fn create_snapshot(self: &Arc<Self>, session: &Session, called: VmId) -> Result<Snapshot, Error> {
        let (app, user) = (Arc::clone(self), session.user().to_owned());
        self.detached(async move {
            let vm = app.blocking(move |app| app.resolve_vm(&called)).await?;
            let _turn = app.turns.take(&vm).await;
            app.blocking(move |app| {
                let mut plan = app.plan(&vm, user)?;
                app.store.begin(&mut plan.snapshot, None)?;
                app.make(plan)
            })
            .await
        })
        .await
    }

    /// Finds the disks, and refuses what cannot be snapshotted before anything is written.
    fn plan(&self, vm: &VmId, user: String) -> Result<Plan, Error> {
        let definition = find_vm(self.inventory()?, vm).ok_or(Error::NotFound("the VM has left the inventory"))?;
        let lines = definition.disks.map_err(Error::NotSnapshottable)?;
        let mut examiner = Examiner::new(self);
        let mut located: Vec<LocatedDisk> = Vec::new();
        for line in &lines {
            match examiner.examine(line).verdict {
                // One file that the definition names twice is one disk.
                Verdict::Taken(disk) if located.iter().any(|other| other.source == disk.source) => {}
                Verdict::Taken(disk) => located.push(disk),
                Verdict::LeftOut(_) => {}
                Verdict::Prevents(reason) => {
                    return Err(Error::NotSnapshottable(format!("{}: {reason}", line.device)));
                }
            }
        }
        if located.is_empty() {
            return Err(Error::NotSnapshottable("it has no disk to snapshot".to_owned()));
        }
        let names = names_for(&located.iter().map(|disk| &disk.source).collect::<Vec<_>>())
            .map_err(|problem| Error::NotSnapshottable(problem.to_string()))?;
        let (mut disks, mut sources) = (Vec::new(), Vec::new());
        for (name, disk) in names.into_iter().zip(located) {
            let identity = FileIdentity { inode: 0, size: disk.size, changed_ns: 0 };
            disks.push(SnapshotDisk { name, source: disk.source, identity });
            sources.push(Source { file: disk.file, path: disk.path });
        }
        let snapshot = Snapshot {
            id: SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128()),
            vm: vm.clone(),
            sequence: 0,
            created_at: jiff::Timestamp::now(),
            created_by: user,
            disks,
            taken: Taken::PLAINLY,
        };
        Ok(Plan { snapshot, sources })
    }

    /// Makes what the intent says, and commits or undoes it.
    fn make(&self, plan: Plan) -> Result<Snapshot, Error> {
        let Plan { mut snapshot, sources } = plan;
        if let Err(error) = self.clone_and_seal(&mut snapshot, sources) {
            self.undo(&snapshot);
            return Err(error);
        }
        if let Err(error) = self.store.commit(&snapshot) {
            // A commit that failed may be on the disk all the same: only the database knows. Where
            // it does not answer, nothing is touched, and the next start decides.
            match self.store.record(snapshot.id) {
                Ok(Some((State::Ready, _))) => {}
                Ok(_) => {
                    self.undo(&snapshot);
                    return Err(error.into());
                }
                Err(_) => return Err(error.into()),
            }
        }
        Ok(snapshot)
    }

    fn clone_and_seal(&self, snapshot: &mut Snapshot, sources: Vec<Source>) -> Result<(), Error> {
        let folders = self.folders_of(snapshot)?;
        for folder in &folders {
            folder.create().map_err(|error| Error::of_step("making the snapshot's folder", error))?;
        }
        let mut disks = Vec::new();
        for (disk, source) in snapshot.disks.iter().zip(sources) {
            disks.push((source, self.folder(snapshot.id, disk)?.disk(&disk.name)));
        }
        let Cloned { files, window } = clone::clone_all(&disks)
            .map_err(|(index, error)| Error::of_step(format!("cloning {}", snapshot.disks[index].name), error))?;
        for (disk, file) in snapshot.disks.iter_mut().zip(&files) {
            disk.identity = SnapshotDir::seal_disk(file)
                .map_err(|error| Error::of_step(format!("writing out {}", disk.name), error))?;
        }
        for folder in &folders {
            folder.seal(snapshot).map_err(|error| Error::of_step("writing the snapshot's manifest", error))?;
        }
        tracing::info!(
            snapshot = %snapshot.id, vm = %snapshot.vm, user = %snapshot.created_by,
            disks = files.len(), clone_ms = %format_args!("{:.3}", window.as_secs_f64() * 1e3), "snapshot made"
        );
        Ok(())
    }

    /// The snapshot's folder in each repository that it touches.
    fn folders_of(&self, snapshot: &Snapshot) -> Result<Vec<SnapshotDir>, Error> {
        let mut seen = HashSet::new();
        let firsts = snapshot.disks.iter().filter(|disk| seen.insert(&disk.source.repository));
        firsts.map(|disk| self.folder(snapshot.id, disk)).collect()
    }

    fn folder(&self, id: SnapshotId, disk: &SnapshotDisk) -> Result<SnapshotDir, Error> {
        let repository = self.repository(&disk.source.repository);
        let repository =
            repository.ok_or_else(|| Error::Internal(format!("no repository {}", disk.source.repository)))?;
        Ok(SnapshotDir::new(&repository, id))
    }

    /// Takes back what was made. What cannot be is taken back at the next start.
    fn undo(&self, snapshot: &Snapshot) {
        if let Err(error) = self.remove(snapshot) {
            tracing::error!(snapshot = %snapshot.id, %error, "not undone; the next start will try again");
        }
    }
}

/// A name for each disk, unique in the snapshot: its file name, where that is free. Of disks of one
/// file name, all but the first get their repository's id before it.
fn names_for(sources: &[&DiskSource]) -> Result<Vec<DiskName>, InvalidId> {
    let mut names: Vec<DiskName> = Vec::new();
    for source in sources {
        let file_name = Path::new(&source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let qualified = format!("{}-{file_name}", source.repository);
        let mut candidates = [file_name.to_owned(), qualified.clone()]
            .into_iter()
            .chain((2..).map(|number| format!("{qualified}-{number}")));
        // Every name before the last is taken, so one of them is free.
        let free = candidates.find(|candidate| names.iter().all(|name| name.as_str() != candidate));
        names.push(free.unwrap_or_default().parse()?);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_one_file_name_are_told_apart() {
        let source = |repository: &str, path: &str| DiskSource {
            repository: repository.parse().unwrap(),
            path: path.to_owned(),
        };
        let sources = [
            source("r1", "VirtualDisks/a.img"),
            source("r2", "VirtualDisks/a.img"),
            source("r2", "Templates/a.img"),
            source("r2", "VirtualDisks/b.img"),
        ];
        let names = names_for(&sources.iter().collect::<Vec<_>>()).unwrap();
        let names: Vec<_> = names.iter().map(DiskName::as_str).collect();
        assert_eq!(names, ["a.img", "r2-a.img", "r2-a.img-2", "b.img"]);
        assert_eq!(names_for(&[&source("r1", "VirtualDisks/.hidden")]), Err(InvalidId::Disk));
    }
}
