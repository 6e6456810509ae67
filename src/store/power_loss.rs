//! Power is lost at each sync of the database's file and after each operation. The disk may have written any part of
//! what was not synced. The database then has every committed operation, and nothing of one that was not committed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::{ReadableDatabase, StorageBackend};

use super::contents::{self, Contents};
use super::database::{Handle, builder};
use super::tests::{begin, snapshot};
use super::*;

/// Sectors are written whole.
const SECTOR: usize = 512;

/// Random states of the disk at each moment.
const STATES: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

/// A change of the file.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Length(length) => file.resize(*length, 0),
            Self::Write(offset, bytes) => {
                let end = offset + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

/// A file on a disk with a volatile cache.
#[derive(Clone)]
struct Disk(Arc<Mutex<State>>);

struct State {
    /// What a power loss leaves in any case.
    synced: Vec<u8>,
    /// What the program reads.
    current: Vec<u8>,
    /// Since the last sync.
    changes: Vec<Change>,
    random: Random,
    /// What power losses at the syncs so far would have left.
    states: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    fn new(content: Vec<u8>, seed: u64) -> Self {
        let (synced, current) = (content.clone(), content);
        Self(Arc::new(Mutex::new(State { synced, current, changes: vec![], random: Random(seed), states: vec![] })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// What a power loss now leaves: what was synced, and some of the other changes. One write may be torn.
    fn after_power_loss(&mut self) -> Vec<u8> {
        let mut file = self.synced.clone();
        for change in &self.changes {
            match (self.random.below(5), change) {
                (0 | 1, _) => {}
                (2, Change::Write(offset, bytes)) => {
                    let sectors = self.random.below(bytes.len() / SECTOR + 1);
                    Change::Write(*offset, bytes[..sectors * SECTOR].to_vec()).apply(&mut file);
                }
                _ => change.apply(&mut file),
            }
        }
        file
    }

    fn record_states(&mut self) {
        for _ in 0..STATES {
            let left = self.after_power_loss();
            self.states.push(left);
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.changes.push(change);
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let bytes = state.current.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.state().change(Change::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.record_states();
        state.synced = state.current.clone();
        state.changes.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state().change(Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}

fn contents_of(file: Vec<u8>) -> Contents {
    let mut database = builder().create_with_backend(Disk::new(file, 0)).unwrap();
    database.check_integrity().unwrap();
    contents::read_all(&database.begin_read().unwrap()).unwrap()
}

struct PowerLossTest {
    store: Store,
    disk: Disk,
    random: Random,
    /// The complete snapshots by number.
    known: BTreeMap<u128, Snapshot>,
    /// Power losses so far.
    count: usize,
}

impl PowerLossTest {
    fn contents(&self) -> Contents {
        self.store.handle.read(contents::read_all).unwrap()
    }

    /// Runs one transaction, with power losses during it and after it.
    fn commit<T>(&mut self, what: &str, work: impl FnOnce(&Store) -> T) -> T {
        let before = self.contents();
        self.disk.state().states.clear();
        let value = work(&self.store);
        let during = std::mem::take(&mut self.disk.state().states);
        let after = self.contents();
        self.disk.state().record_states();
        let afterwards = std::mem::take(&mut self.disk.state().states);
        assert!(!during.is_empty() || before == after, "{what}: nothing was synced");
        self.count += during.len() + afterwards.len();
        for left in during {
            let found = contents_of(left);
            assert!(found == before || found == after, "{what}: a part of it survived, or an earlier one is lost");
        }
        for left in afterwards {
            assert!(contents_of(left) == after, "{what}: it was committed, and is lost");
        }
        value
    }

    /// Runs a random operation.
    fn operate(&mut self) {
        let number = self.known.keys().last().map_or(1, |last| last + 1);
        let place = self.random.below(self.known.len().max(1));
        let until = "2030-01-01T00:00:00Z".parse().unwrap();
        match (self.random.below(9), self.known.values().nth(place).cloned()) {
            (0..3, _) | (_, None) => {
                let hooks = (self.random.below(2) == 0).then(|| vec![7; 300]);
                let begun = self.commit("begin", |store| begin(store, snapshot(number), hooks.as_deref()));
                // Some are never finished.
                if self.random.below(4) > 0 {
                    let described = Described { expires_at: Some(until), ..Described::alone(begun.clone()) };
                    self.commit("commit", |store| store.commit(&[(described.clone(), None)])).unwrap();
                }
                self.known.insert(number, begun);
            }
            (3, Some(old)) => {
                self.commit("begin_deletion", |store| store.begin_deletion(&old, None)).unwrap();
                self.commit("forget", |store| store.forget(&SnapshotFiles::from(&old), None)).unwrap();
                self.known.remove(&old.id.as_u128());
            }
            (4, Some(old)) => {
                self.commit("lease", |store| store.retentions().lease(old.id, "admin", until)).unwrap();
            }
            (5, Some(old)) => {
                let (name, digest) = (&old.disks[0].name, [number as u8; 32]);
                self.commit("checksum", |store| store.proofs().record_checksum(old.id, name, "sha256", &digest))
                    .unwrap();
            }
            (6, Some(old)) => {
                let key = PendingHooksKey::of_creation(old.id);
                let event = [Some(event())];
                self.commit("record hooks", |store| store.pending_hooks().record(key, &[8; 300], &event)).unwrap();
                self.commit("clear hooks", |store| store.pending_hooks().clear(key, &event)).unwrap();
            }
            (7, Some(old)) => {
                let undo = [(old.id, Some(event()))];
                self.commit("begin_undo", |store| store.begin_undo(&undo)).unwrap();
            }
            (_, Some(_)) => {
                let adopted = Snapshot { sequence: number as u64, ..snapshot(number) };
                assert!(self.commit("adopt", |store| store.adopt(&Described::alone(adopted.clone()))).unwrap());
                self.known.insert(number, adopted);
            }
        }
    }
}

fn event() -> NewEvent {
    NewEvent { webhooks: vec!["a".to_owned()], body: vec![9; 300], max_queued: 10 }
}

#[test]
fn committed_transactions_survive_a_power_loss_and_no_others() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("STORE_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_microsecond() as u64);
    eprintln!("STORE_SEED={seed}");
    // The service looks at the file at the path of its database.
    let place = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path(), "stands for the file").unwrap();
    let disk = Disk::new(Vec::new(), seed);
    let database = builder().create_with_backend(disk.clone()).unwrap();
    let store = Store { handle: Arc::new(Handle::over(database, place.path()).unwrap()) };
    let mut test = PowerLossTest { store, disk, random: Random(!seed), known: BTreeMap::new(), count: 0 };
    let operations = number("STORE_OPERATIONS").unwrap_or(20);
    for _ in 0..operations {
        test.operate();
    }
    assert!(test.count as u64 > 2 * operations, "only {} power losses", test.count);
}

#[test]
fn a_migration_survives_a_power_loss() {
    let place = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path(), "stands for the file").unwrap();
    let migrated = |disk: &Disk| {
        let database = builder().create_with_backend(disk.clone()).unwrap();
        let store = Store { handle: Arc::new(Handle::over(database, place.path()).unwrap()) };
        store.handle.read(contents::read_all).unwrap()
    };
    for schema in 1..schema::CURRENT_SCHEMA {
        let disk = Disk::new(std::fs::read(super::tests::golden_path(schema)).unwrap(), schema);
        let expected = migrated(&disk);
        let states = std::mem::take(&mut disk.state().states);
        assert!(states.len() > 2 * STATES, "schema {schema}: only {} power losses", states.len());
        for left in states {
            assert!(migrated(&Disk::new(left, 0)) == expected, "schema {schema}");
        }
    }
}

/// Otherwise the tests above could not fail.
#[test]
fn power_loss_takes_what_was_not_synced() {
    let disk = Disk::new(vec![0; 1024], 1);
    disk.write(0, &[1; 1024]).unwrap();
    let mut state = disk.state();
    let states: Vec<_> = (0..50).map(|_| state.after_power_loss()).collect();
    drop(state);
    let torn = [vec![1; 512], vec![0; 512]].concat();
    for expected in [vec![0; 1024], vec![1; 1024], torn] {
        assert!(states.contains(&expected), "no power loss leaves {expected:?}");
    }
    disk.sync_data().unwrap();
    assert_eq!(disk.state().after_power_loss(), [1; 1024]);
}
