//! Proves the content of touched files: snapshot files of which only the change time differs, for example after a hard
//! link or a change of owner or label. They are used again as far as their content is proven.
//!
//! Proofs are recorded, because a later proof may be impossible: the VM's disk shares fewer blocks over time.

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

/// How long a missing proof is cached. Another attempt has to read several maps.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// How long a request waits for another one that reads the maps of the same file.
const WAIT: Duration = Duration::from_secs(10);

/// The most other snapshots to compare extent maps with, the nearest first.
const MAX_WITNESSES: usize = 32;

/// The recent proofs, and the checksums that are being calculated.
#[derive(Clone)]
pub(super) struct ContentProofs {
    inventory: Arc<Inventory>,
    store: Store,
    slots: Arc<Mutex<HashMap<(SnapshotId, DiskName), TrustSlot>>>,
    /// Checksums to calculate. A repository with an entry has a thread that calculates them.
    checks: Arc<Mutex<HashMap<RepositoryId, VecDeque<Check>>>>,
}

/// The state of one file, locked by the thread that examines it.
type TrustSlot = Arc<Mutex<Option<FileTrust>>>;

/// How far the content of a file is proven, for one change time.
#[derive(Clone, Copy)]
struct FileTrust {
    changed_ns: i128,
    proof: Proof,
    at: Instant,
    sum: ChecksumState,
}

/// The state of a touched file's checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChecksumState {
    /// It was not calculated: none is recorded, or it was not needed.
    NotStarted,
    Checking,
    /// It was calculated. The result holds as long as the file has this change time.
    Done,
}

impl FileTrust {
    /// Whether the file must be examined again.
    fn is_stale(&self) -> bool {
        self.sum == ChecksumState::NotStarted && self.at.elapsed() >= RETRY_AFTER
    }
}

/// A checksum to calculate of a touched file.
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

    /// The state of a disk's file. The thread that examines the file locks it; the others wait.
    fn slot(&self, id: SnapshotId, disk: &DiskName) -> TrustSlot {
        let mut slots = lock(&self.slots);
        // Remove stale entries that are not in use.
        slots.retain(|_, slot| {
            let is_stale = slot.try_lock().is_ok_and(|known| known.is_none_or(|known| known.is_stale()));
            Arc::strong_count(slot) > 1 || !is_stale
        });
        Arc::clone(slots.entry((id, disk.clone())).or_default())
    }

    /// Calculates the checksum of a file in the background, one at a time for each repository.
    fn check_later(&self, check: Check) -> std::io::Result<()> {
        let id = check.repository.id().clone();
        let mut checks = lock(&self.checks);
        if let Some(waiting) = checks.get_mut(&id) {
            waiting.push_back(check);
            return Ok(());
        }
        let (proofs, of) = (self.clone(), id.clone());
        std::thread::Builder::new().name("touched".to_owned()).spawn(move || proofs.run_checks(&of))?;
        checks.insert(id, VecDeque::from([check]));
        Ok(())
    }

    fn run_checks(&self, id: &RepositoryId) {
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
            // The file may have been touched again meanwhile.
            let Some(of) = known.as_mut().filter(|known| known.changed_ns == check.changed_ns) else { continue };
            let (snapshot, disk) = (check.snapshot, &check.disk.name);
            match agrees {
                Ok(agrees) => {
                    of.sum = ChecksumState::Done;
                    if agrees {
                        of.proof = Proof::Whole;
                        log_proof(snapshot, disk, Proof::Whole, "its checksum matches the recorded one");
                        record_proof(&check.store, snapshot, disk, check.changed_ns);
                    } else {
                        // The bytes differ from the recorded ones, even if other files share the blocks.
                        of.proof = if of.proof == Proof::None { Proof::None } else { Proof::Map };
                        tracing::warn!(
                            %snapshot, %disk,
                            "the checksum of a touched file differs from the recorded one"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(%snapshot, %disk, %error, "cannot calculate the checksum of a touched file");
                    *known = None;
                }
            }
        }
    }
}

impl Check {
    /// Whether the file has its recorded checksum.
    fn agrees(&self) -> Result<bool, ChecksumError> {
        let Self { snapshot, changed_ns, .. } = *self;
        tracing::info!(%snapshot, disk = %self.disk.name, "calculating the checksum of a touched file");
        let (repository, disk) = (self.repository.clone(), self.disk.clone());
        let opened = self.repository.executor().run(JobKind::SHORT, move |access| {
            DiskFile::open(access, &repository, (snapshot, &disk), Some(changed_ns))
        });
        let file = Arc::new(opened.map_err(OpenError::from)??);
        let store = self.store.clone();
        // Deleting the snapshot cancels the checksum.
        let is_wanted: IsWanted = Arc::new(move || store.snapshot(snapshot).is_ok_and(|found| found.is_some()));
        let range = 0..file.size();
        Ok(checksum::of_range(file, range, self.algorithm, &is_wanted)? == self.recorded)
    }
}

/// Locks the state of a file. Returns nothing if another thread examines the file for too long.
fn lock_slot(slot: &Mutex<Option<FileTrust>>) -> Option<MutexGuard<'_, Option<FileTrust>>> {
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

fn log_proof(snapshot: SnapshotId, disk: &DiskName, proof: Proof, how: &str) {
    match proof {
        Proof::Whole => {
            tracing::info!(%snapshot, %disk, how, "the content of a touched file is proven; it can be used again")
        }
        Proof::Map => tracing::info!(
            %snapshot, %disk,
            "a touched file can be used again as a base only: its extent map matches the recorded one, but no other \
             file is known to share all of its blocks, so its bytes are not served"
        ),
        Proof::None => tracing::warn!(%snapshot, %disk, "the content of a touched file cannot be proven"),
    }
}

fn record_proof(store: &Store, snapshot: SnapshotId, disk: &DiskName, changed_ns: i128) {
    if let Err(error) = store.proofs().record(snapshot, disk, changed_ns) {
        tracing::warn!(%snapshot, %disk, %error, "cannot record the proof of a touched file");
    }
}

impl ContentProofs {
    /// Opens a disk's file with `open`, if its content is proven as far as `needed`.
    ///
    /// # Errors
    /// [`OpenError::Touched`] while that is being checked.
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

    /// How far the content of a touched file is proven. If the extent maps prove less than `needed` and a checksum is
    /// recorded, the checksum is calculated in the background, because that reads the whole disk.
    fn proof_of(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        changed_ns: i128,
        needed: Proof,
    ) -> Result<Proof, OpenError> {
        if self.is_recorded(snapshot, disk, changed_ns) {
            return Ok(Proof::Whole);
        }
        let slot = self.slot(snapshot.id, &disk.name);
        let mut slot = lock_slot(&slot).ok_or(OpenError::Touched { changed_ns })?;
        let known = match slot.filter(|known| known.changed_ns == changed_ns && !known.is_stale()) {
            Some(known) => known,
            None => {
                let (proof, seen) = self.examine(snapshot, disk)?;
                if seen != changed_ns {
                    return Err(OpenError::Touched { changed_ns: seen });
                }
                log_proof(
                    snapshot.id,
                    &disk.name,
                    proof,
                    "its extent map matches the recorded one, and other files share its blocks",
                );
                if proof == Proof::Whole {
                    record_proof(&self.store, snapshot.id, &disk.name, changed_ns);
                }
                *slot.insert(FileTrust { changed_ns, proof, at: Instant::now(), sum: ChecksumState::NotStarted })
            }
        };
        let is_enough = known.proof == Proof::Whole || (known.proof == Proof::Map && needed == Proof::Map);
        match known.sum {
            ChecksumState::Done => Ok(known.proof),
            _ if is_enough => Ok(known.proof),
            ChecksumState::Checking => Err(OpenError::Touched { changed_ns }),
            ChecksumState::NotStarted => {
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

    fn is_recorded(&self, snapshot: &Snapshot, disk: &SnapshotDisk, changed_ns: i128) -> bool {
        let proven = self.store.proofs().proven_change(snapshot.id, &disk.name);
        let proven = proven.inspect_err(|error| tracing::warn!(%error, "cannot read the recorded proof"));
        proven.is_ok_and(|proven| proven == Some(changed_ns))
    }

    fn examine(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<(Proof, i128), OpenError> {
        let repository = self.inventory.repository_of(disk)?;
        let mut others = self.store.snapshots_of(&snapshot.vm).unwrap_or_default();
        others.retain(|other| other.id != snapshot.id);
        others.sort_by_key(|other| other.sequence.abs_diff(snapshot.sequence));
        let of_disk = |other: Snapshot| {
            let (id, is_earlier) = (other.id, other.order() < snapshot.order());
            let disk = other.disks.into_iter().find(|other| other.source == disk.source)?;
            Some(OtherSnapshot { id, disk, is_earlier })
        };
        let others: Vec<_> = others.into_iter().filter_map(of_disk).take(MAX_WITNESSES).collect();
        let (examined, id, of) = (repository.clone(), snapshot.id, disk.clone());
        let result = repository
            .executor()
            .run(JobKind::BULK, move |access| seal::examine(access, &examined, (id, &of), &others));
        result?.map_err(|error| match Unavailable::of(&error) {
            Some(cause) => OpenError::RepositoryUnavailable(cause.to_string()),
            None => error.into(),
        })
    }

    /// The recorded checksum of the whole disk, if there is one.
    fn recorded_checksum(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Option<(Algorithm, Digest)> {
        let recorded = self.store.proofs().checksums(snapshot.id, &disk.name);
        let recorded = recorded.inspect_err(|error| tracing::warn!(%error, "cannot read the recorded checksums"));
        let known = |(name, digest): (String, _)| Some((Algorithm::named(&name)?, Digest(digest)));
        recorded.unwrap_or_default().into_iter().find_map(known)
    }
}
