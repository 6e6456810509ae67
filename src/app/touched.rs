//! Snapshots' files whose change time alone is another one: a link was made, a label or an owner changed. They are
//! looked at more closely, and used again as far as their content is proven.
//!
//! What is proven is written down, so that it holds after a restart: later it may not be provable any more, when
//! the VM's own disk shares fewer blocks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::App;
use crate::model::{DiskName, Snapshot, SnapshotDisk, SnapshotId};
use crate::repository::changes::IsWanted;
use crate::repository::executor::Kind;
use crate::repository::seal::{self, Proof};
use crate::repository::{Absent, DiskFile, OpenError, Repository, checksum};

/// How long what was not proven is believed: it is looked at again, as it costs the reading of several maps.
const MEMORY: Duration = Duration::from_secs(60);

/// How long a request waits for another one that makes a checksum.
const WAIT: Duration = Duration::from_secs(10);

/// Other snapshots that are asked for the blocks of one, the nearest first.
const WITNESSES: usize = 32;

/// What was found out about files of late.
#[derive(Default)]
pub(super) struct Touched(Mutex<HashMap<(SnapshotId, DiskName), Place>>);

/// What is known of one file, held by whoever finds it out.
type Place = Arc<Mutex<Option<Known>>>;

/// How far a file is proven, for one change time.
#[derive(Clone, Copy)]
struct Known {
    changed_ns: i128,
    proof: Proof,
    at: Instant,
}

impl Touched {
    /// The place of what is known of a disk. Whoever finds it out holds it, and the others wait.
    fn place(&self, id: SnapshotId, disk: &DiskName) -> Place {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody looks at any more, and what is old.
        places.retain(|_, place| {
            let is_old = place.try_lock().is_ok_and(|known| known.is_none_or(|known| known.at.elapsed() > MEMORY));
            Arc::strong_count(place) > 1 || !is_old
        });
        Arc::clone(places.entry((id, disk.clone())).or_default())
    }
}

/// Waits until nobody else finds out about a file. A checksum may take longer than is waited for.
fn wait_for(place: &Mutex<Option<Known>>) -> Option<MutexGuard<'_, Option<Known>>> {
    let end = Instant::now() + WAIT;
    loop {
        match place.try_lock() {
            Ok(known) => return Some(known),
            Err(TryLockError::Poisoned(known)) => return Some(known.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl App {
    /// Opens a disk's file as the base of a comparison, for which less has to be proven than for its bytes.
    pub(super) fn open_base(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<(DiskFile, Proof), OpenError> {
        self.proven(snapshot, disk, Proof::Map, |proven| self.open_file(false, snapshot, disk, proven))
    }

    /// Opens a disk's file with `open`, where as much of its content is proven as is `needed`.
    pub(super) fn proven(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        needed: Proof,
        open: impl Fn(Option<i128>) -> Result<DiskFile, OpenError>,
    ) -> Result<(DiskFile, Proof), OpenError> {
        let changed_ns = match open(None) {
            Err(OpenError::Touched { changed_ns }) => changed_ns,
            opened => return opened.map(|file| (file, Proof::Whole)),
        };
        match (self.proof_of(snapshot, disk, changed_ns)?, needed) {
            (Proof::None, _) => Err(OpenError::Replaced),
            (Proof::Map, Proof::Whole) => Err(OpenError::Touched { changed_ns }),
            (proof, _) => open(Some(changed_ns)).map(|file| (file, proof)),
        }
    }

    /// How far the content of a disk's file is proven that was touched.
    fn proof_of(&self, snapshot: &Snapshot, disk: &SnapshotDisk, changed_ns: i128) -> Result<Proof, OpenError> {
        if self.is_written_down(snapshot, disk, changed_ns) {
            return Ok(Proof::Whole);
        }
        let place = self.touched.place(snapshot.id, &disk.name);
        let mut known = wait_for(&place).ok_or_else(|| {
            OpenError::RepositoryAway("has a file that was touched, which is being checked; ask again later".to_owned())
        })?;
        if let Some(known) = known.filter(|known| known.changed_ns == changed_ns && known.at.elapsed() < MEMORY) {
            return Ok(known.proof);
        }
        let (mut proof, seen) = self.examine(snapshot, disk)?;
        if seen != changed_ns {
            return Err(OpenError::Touched { changed_ns: seen });
        }
        let mut how = "its map of extents is as it was recorded, and other files share its blocks";
        if proof != Proof::Whole && self.has_recorded_checksum(snapshot, disk, changed_ns) {
            (proof, how) = (Proof::Whole, "its checksum is as it was recorded");
        }
        let (id, name) = (snapshot.id, &disk.name);
        match proof {
            Proof::Whole => {
                tracing::info!(snapshot = %id, disk = %name, how, "its file was touched, and is believed again");
                if let Err(error) = self.store.prove(id, name, changed_ns) {
                    tracing::warn!(snapshot = %id, disk = %name, %error, "that cannot be written down");
                }
            }
            Proof::Map => tracing::info!(
                snapshot = %id, disk = %name,
                "its file was touched, and is believed again as a base: its map of extents is as it was recorded, but \
                 no other file shares all of its blocks, so its own bytes are not served"
            ),
            Proof::None => tracing::warn!(snapshot = %id, disk = %name, "its file was touched, and is not believed"),
        }
        *known = Some(Known { changed_ns, proof, at: Instant::now() });
        Ok(proof)
    }

    fn is_written_down(&self, snapshot: &Snapshot, disk: &SnapshotDisk, changed_ns: i128) -> bool {
        let proven = self.store.proven(snapshot.id, &disk.name);
        let proven = proven.inspect_err(|error| tracing::warn!(%error, "what is proven of it is not known"));
        proven.is_ok_and(|proven| proven == Some(changed_ns))
    }

    fn examine(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<(Proof, i128), OpenError> {
        let repository = self.repository_of(disk)?;
        let mut others = self.store.snapshots_of(&snapshot.vm).unwrap_or_default();
        others.retain(|other| other.id != snapshot.id);
        others.sort_by_key(|other| other.sequence.abs_diff(snapshot.sequence));
        let of_disk = |other: Snapshot| {
            let id = other.id;
            other.disks.into_iter().find(|other| other.source == disk.source).map(|other| (id, other))
        };
        let others: Vec<_> = others.into_iter().filter_map(of_disk).take(WITNESSES).collect();
        let (asked, id, of) = (repository.clone(), snapshot.id, disk.clone());
        let examined =
            repository.executor().run(Kind::BULK, move |access| seal::examine(access, &asked, (id, &of), &others));
        examined?.map_err(|error| match Absent::of(&error) {
            Some(absent) => OpenError::RepositoryAway(absent.to_string()),
            None => error.into(),
        })
    }

    /// Whether a checksum is recorded of the whole disk, and its file has it now.
    fn has_recorded_checksum(&self, snapshot: &Snapshot, disk: &SnapshotDisk, changed_ns: i128) -> bool {
        let recorded = self.store.checksums(snapshot.id, &disk.name).unwrap_or_default();
        let known = |(name, digest): (String, _)| Some((checksum::Algorithm::named(&name)?, digest));
        let Some((algorithm, recorded)) = recorded.into_iter().find_map(known) else { return false };
        let Ok(file) = self.open_file(false, snapshot, disk, Some(changed_ns)) else { return false };
        let range = 0..file.size();
        let always: IsWanted = Arc::new(|| true);
        tracing::info!(snapshot = %snapshot.id, disk = %disk.name, "its file was touched: its checksum is made again");
        checksum::sum(Arc::new(file), range, algorithm, &always).is_ok_and(|digest| digest.0 == recorded)
    }

    pub(super) fn repository_of(&self, disk: &SnapshotDisk) -> Result<Repository, OpenError> {
        let away = || OpenError::RepositoryAway("is not in the list of repositories any more".to_owned());
        self.repository(&disk.source.repository).ok_or_else(away)
    }
}
