//! Snapshots' files whose change time alone is another one: a link was made, a label or an owner changed. They are
//! looked at more closely, and used again as far as their content is proven.
//!
//! What is proven is written down, so that it holds after a restart: later it may not be provable any more, when
//! the VM's own disk shares fewer blocks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::app::inventory::Inventory;
use crate::model::{DiskName, RepositoryId, Snapshot, SnapshotDisk, SnapshotId};
use crate::repository::changes::IsWanted;
use crate::repository::checksum::{self, Algorithm, ChecksumError, Digest};
use crate::repository::executor::JobKind;
use crate::repository::seal::{self, OtherSnapshot, Proof};
use crate::repository::{DiskFile, OpenError, Repository, Unavailable};
use crate::store::Store;

/// How long what was not proven is believed: it is looked at again, as it costs the reading of several maps.
const MEMORY: Duration = Duration::from_secs(60);

/// How long a request waits for another one that reads the maps of the same file.
const WAIT: Duration = Duration::from_secs(10);

/// Other snapshots that are asked for the blocks of one, the nearest first.
const WITNESSES: usize = 32;

/// What was found out about files of late.
#[derive(Clone)]
pub(super) struct ContentProofs {
    inventory: Arc<Inventory>,
    store: Store,
    slots: Arc<Mutex<HashMap<(SnapshotId, DiskName), TrustSlot>>>,
    /// Checksums that are to be made. A repository that has an entry has a thread that makes them.
    checks: Arc<Mutex<HashMap<RepositoryId, VecDeque<Check>>>>,
}

/// What is known of one file, held by whoever finds it out.
type TrustSlot = Arc<Mutex<Option<FileTrust>>>;

/// How far a file is proven, for one change time.
#[derive(Clone, Copy)]
struct FileTrust {
    changed_ns: i128,
    proof: Proof,
    at: Instant,
    sum: ChecksumState,
}

/// What the checksum of a touched file says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChecksumState {
    /// It was not made: none is recorded, or it was not needed.
    NotMade,
    /// It is being made.
    Checking,
    /// It was made. What it says holds as long as the file has this change time.
    Made,
}

impl FileTrust {
    /// Whether it has to be found out again.
    fn is_old(&self) -> bool {
        self.sum == ChecksumState::NotMade && self.at.elapsed() >= MEMORY
    }
}

/// A checksum that is to be made of a touched file.
struct Check {
    repository: Repository,
    snapshot: SnapshotId,
    disk: SnapshotDisk,
    changed_ns: i128,
    algorithm: Algorithm,
    recorded: Digest,
    store: Store,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ContentProofs {
    pub(super) fn new(inventory: Arc<Inventory>, store: Store) -> Self {
        Self { inventory, store, slots: Arc::default(), checks: Arc::default() }
    }

    /// The place of what is known of a disk. Whoever finds it out holds it, and the others wait.
    fn slot(&self, id: SnapshotId, disk: &DiskName) -> TrustSlot {
        let mut slots = lock(&self.slots);
        // What nobody looks at any more, and what is old.
        slots.retain(|_, slot| {
            let is_old = slot.try_lock().is_ok_and(|known| known.is_none_or(|known| known.is_old()));
            Arc::strong_count(slot) > 1 || !is_old
        });
        Arc::clone(slots.entry((id, disk.clone())).or_default())
    }

    /// Has the checksum of a file made in the background, one after the other for each repository.
    fn check_later(&self, check: Check) -> std::io::Result<()> {
        let id = check.repository.id().clone();
        let mut checks = lock(&self.checks);
        if let Some(waiting) = checks.get_mut(&id) {
            waiting.push_back(check);
            return Ok(());
        }
        let (proofs, of) = (self.clone(), id.clone());
        std::thread::Builder::new().name("touched".to_owned()).spawn(move || proofs.make_checks(&of))?;
        checks.insert(id, VecDeque::from([check]));
        Ok(())
    }

    fn make_checks(&self, id: &RepositoryId) {
        loop {
            let next = {
                let mut checks = lock(&self.checks);
                let next = checks.get_mut(id).and_then(VecDeque::pop_front);
                if next.is_none() {
                    checks.remove(id);
                }
                next
            };
            let Some(check) = next else { return };
            let slot = self.slot(check.snapshot, &check.disk.name);
            let agrees = check.agrees();
            let mut known = lock(&slot);
            // It may have been touched once more meanwhile.
            let Some(of) = known.as_mut().filter(|known| known.changed_ns == check.changed_ns) else { continue };
            let (snapshot, disk) = (check.snapshot, &check.disk.name);
            match agrees {
                Ok(agrees) => {
                    of.sum = ChecksumState::Made;
                    if agrees {
                        of.proof = Proof::Whole;
                        say(snapshot, disk, Proof::Whole, "its checksum is as it was recorded");
                        write_down(&check.store, snapshot, disk, check.changed_ns);
                    } else {
                        // Its own bytes are not the recorded ones, whatever other files share its blocks.
                        of.proof = if of.proof == Proof::None { Proof::None } else { Proof::Map };
                        tracing::warn!(%snapshot, %disk, "its file was touched, and its checksum is another one");
                    }
                }
                Err(error) => {
                    tracing::warn!(%snapshot, %disk, %error, "the checksum of a touched file cannot be made");
                    *known = None;
                }
            }
        }
    }
}

impl Check {
    /// Whether the file has the checksum that is recorded of it.
    fn agrees(&self) -> Result<bool, ChecksumError> {
        let Self { snapshot, changed_ns, .. } = *self;
        tracing::info!(%snapshot, disk = %self.disk.name, "its file was touched: its checksum is made again");
        let (repository, disk) = (self.repository.clone(), self.disk.clone());
        let opened = self.repository.executor().run(JobKind::SHORT, move |access| {
            DiskFile::open(access, &repository, (snapshot, &disk), Some(changed_ns))
        });
        let file = Arc::new(opened.map_err(OpenError::from)??);
        let store = self.store.clone();
        // Nobody needs it when the snapshot is deleted.
        let is_wanted: IsWanted = Arc::new(move || store.snapshot(snapshot).is_ok_and(|found| found.is_some()));
        let range = 0..file.size();
        Ok(checksum::of_range(file, range, self.algorithm, &is_wanted)? == self.recorded)
    }
}

/// Waits until nobody else reads the maps of a file.
fn wait_for(slot: &Mutex<Option<FileTrust>>) -> Option<MutexGuard<'_, Option<FileTrust>>> {
    let end = Instant::now() + WAIT;
    loop {
        match slot.try_lock() {
            Ok(known) => return Some(known),
            Err(TryLockError::Poisoned(known)) => return Some(known.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn say(snapshot: SnapshotId, disk: &DiskName, proof: Proof, how: &str) {
    match proof {
        Proof::Whole => tracing::info!(%snapshot, %disk, how, "its file was touched, and is believed again"),
        Proof::Map => tracing::info!(
            %snapshot, %disk,
            "its file was touched, and is believed again as a base: its map of extents is as it was recorded, but \
             no other file is known to share all of its blocks, so its own bytes are not served"
        ),
        Proof::None => tracing::warn!(%snapshot, %disk, "its file was touched, and is not believed"),
    }
}

fn write_down(store: &Store, snapshot: SnapshotId, disk: &DiskName, changed_ns: i128) {
    if let Err(error) = store.proofs().record(snapshot, disk, changed_ns) {
        tracing::warn!(%snapshot, %disk, %error, "that its content is proven cannot be written down");
    }
}

impl ContentProofs {
    /// Opens a disk's file with `open`, where as much of its content is proven as is `needed`.
    ///
    /// # Errors
    /// [`OpenError::Touched`] where that is being found out.
    pub(super) fn open_proven(
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
        match (self.proof_of(snapshot, disk, changed_ns, needed)?, needed) {
            (Proof::None, _) => Err(OpenError::Replaced),
            (Proof::Map, Proof::Whole) => Err(OpenError::Unproven),
            (proof, _) => open(Some(changed_ns)).map(|file| (file, proof)),
        }
    }

    /// How far the content of a disk's file is proven that was touched. Where its maps prove less than is
    /// `needed`, and a checksum is recorded, that is made in the background: it reads the whole disk.
    fn proof_of(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        changed_ns: i128,
        needed: Proof,
    ) -> Result<Proof, OpenError> {
        if self.is_written_down(snapshot, disk, changed_ns) {
            return Ok(Proof::Whole);
        }
        let slot = self.slot(snapshot.id, &disk.name);
        let mut slot = wait_for(&slot).ok_or(OpenError::Touched { changed_ns })?;
        let known = match slot.filter(|known| known.changed_ns == changed_ns && !known.is_old()) {
            Some(known) => known,
            None => {
                let (proof, seen) = self.examine(snapshot, disk)?;
                if seen != changed_ns {
                    return Err(OpenError::Touched { changed_ns: seen });
                }
                say(
                    snapshot.id,
                    &disk.name,
                    proof,
                    "its map of extents is as it was recorded, and other files share its blocks",
                );
                if proof == Proof::Whole {
                    write_down(&self.store, snapshot.id, &disk.name, changed_ns);
                }
                *slot.insert(FileTrust { changed_ns, proof, at: Instant::now(), sum: ChecksumState::NotMade })
            }
        };
        let is_enough = known.proof == Proof::Whole || (known.proof == Proof::Map && needed == Proof::Map);
        match known.sum {
            ChecksumState::Made => Ok(known.proof),
            _ if is_enough => Ok(known.proof),
            ChecksumState::Checking => Err(OpenError::Touched { changed_ns }),
            ChecksumState::NotMade => {
                let Some((algorithm, recorded)) = self.recorded_checksum(snapshot, disk) else {
                    return Ok(known.proof);
                };
                let (repository, disk, store) = (self.inventory.repository_of(disk)?, disk.clone(), self.store.clone());
                let check = Check { repository, snapshot: snapshot.id, disk, changed_ns, algorithm, recorded, store };
                self.check_later(check)?;
                *slot = Some(FileTrust { sum: ChecksumState::Checking, ..known });
                Err(OpenError::Touched { changed_ns })
            }
        }
    }

    fn is_written_down(&self, snapshot: &Snapshot, disk: &SnapshotDisk, changed_ns: i128) -> bool {
        let proven = self.store.proofs().proven_change(snapshot.id, &disk.name);
        let proven = proven.inspect_err(|error| tracing::warn!(%error, "what is proven of it is not known"));
        proven.is_ok_and(|proven| proven == Some(changed_ns))
    }

    fn examine(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<(Proof, i128), OpenError> {
        let repository = self.inventory.repository_of(disk)?;
        let mut others = self.store.snapshots_of(&snapshot.vm).unwrap_or_default();
        others.retain(|other| other.id != snapshot.id);
        others.sort_by_key(|other| other.sequence.abs_diff(snapshot.sequence));
        let of_disk = |other: Snapshot| {
            let (id, is_earlier) = (other.id, other.sequence < snapshot.sequence);
            let disk = other.disks.into_iter().find(|other| other.source == disk.source)?;
            Some(OtherSnapshot { id, disk, is_earlier })
        };
        let others: Vec<_> = others.into_iter().filter_map(of_disk).take(WITNESSES).collect();
        let (asked, id, of) = (repository.clone(), snapshot.id, disk.clone());
        let examined =
            repository.executor().run(JobKind::BULK, move |access| seal::examine(access, &asked, (id, &of), &others));
        examined?.map_err(|error| match Unavailable::of(&error) {
            Some(absent) => OpenError::RepositoryUnavailable(absent.to_string()),
            None => error.into(),
        })
    }

    /// The checksum that is recorded of the whole disk, where one is.
    fn recorded_checksum(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Option<(Algorithm, Digest)> {
        let recorded = self.store.proofs().checksums(snapshot.id, &disk.name);
        let recorded = recorded.inspect_err(|error| tracing::warn!(%error, "its recorded checksums are not known"));
        let known = |(name, digest): (String, _)| Some((Algorithm::named(&name)?, Digest(digest)));
        recorded.unwrap_or_default().into_iter().find_map(known)
    }
}
