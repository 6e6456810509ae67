//! What the service remembers: which snapshots there are, and which are half made or half gone.
//!
//! The database is an index: every snapshot folder carries a manifest from which its entry could be
//! written anew. It never holds a map of extents.

mod database;
mod error;
mod proof;
mod record;
mod retention;
mod schema;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::model::{Snapshot, SnapshotDraft, SnapshotFiles, SnapshotId, UnfinishedSnapshot, VmId};

pub use error::{StoreError, Trouble};
pub use record::Record;
use record::State;
pub use retention::{CommitOptions, KEY_LIFETIME, KeyUse, RequestKey};

/// Snapshot id → record. Made by the migrations.
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (VM, sequence) → snapshot id.
const SNAPSHOTS_BY_VM: TableDefinition<'_, (&str, u64), u128> = TableDefinition::new("snapshots_by_vm");

/// Snapshot id → the operation (JSON) whose `post` hooks have not run yet.
const PENDING_HOOKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("owed_hooks");

/// The first place in the order that [`Store::begin`] gives. Those before are for snapshots that were
/// adopted, by the second of their creation.
pub const FIRST_SEQUENCE: u64 = 1 << 32;

/// The last place that an adopted snapshot may name: a damaged manifest must not use up the order.
pub const LAST_SEQUENCE: u64 = 1 << 48;

/// The database. Its calls block; each write is on stable storage when it returns.
#[derive(Clone)]
pub struct Store {
    handle: Arc<database::Handle>,
}

/// What was found where the database is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// No file: the service will make one.
    Missing,
    /// A database of ours.
    Good,
    /// One that was not closed well: the service will repair it.
    Unclean,
}

/// Looks at the database at `path`, and changes nothing.
///
/// # Errors
/// What [`Store::open`] would say.
pub fn inspect(path: &Path) -> Result<DatabaseState, StoreError> {
    database::inspect(path)
}

impl Store {
    /// Opens the database at `path`, or makes it, and brings it to today's schema.
    ///
    /// # Errors
    /// [`StoreError`]; a file that is not ours is left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { handle: Arc::new(database::Handle::open(path)?) })
    }

    /// Writes once more where the last write failed and nothing else is wrong: what kept it from being written may
    /// be over, and nobody else may write for long.
    pub fn retry_failed_write(&self) {
        if matches!(self.handle.trouble(), Some(Trouble::WriteFailed(_)))
            && let Err(error) = self.handle.write(|_| Ok(()))
        {
            tracing::warn!(%error, "the database still cannot be written to");
        }
    }

    /// What is wrong with the database's file or its disk, though it answers.
    pub fn trouble(&self) -> Option<Trouble> {
        self.handle.trouble()
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check(&self) -> Result<(), StoreError> {
        self.handle.read(|transaction| {
            transaction.open_table(SNAPSHOTS)?;
            Ok(())
        })
    }

    /// Records that the snapshot of `draft` is about to be made, and gives it its place in the order. If `owed` is
    /// given, its post hooks are pending from now on: see [`Store::record_pending_hooks`].
    ///
    /// # Errors
    /// [`StoreError::FileLost`] where the next start would not find the record.
    pub fn begin(&self, draft: SnapshotDraft, owed: Option<&[u8]>) -> Result<UnfinishedSnapshot, StoreError> {
        if let Some(trouble) = self.trouble().filter(Trouble::loses_writes) {
            return Err(StoreError::FileLost(trouble));
        }
        self.handle.write(|transaction| {
            let sequence = {
                let mut counters = transaction.open_table(schema::COUNTERS)?;
                let last = counters.get("sequence")?.map_or(0, |value| value.value());
                let next = (last + 1).max(FIRST_SEQUENCE);
                counters.insert("sequence", next)?;
                next
            };
            let unfinished = UnfinishedSnapshot::new(draft, sequence);
            let SnapshotDraft { id, ref vm, .. } = unfinished.draft;
            put_bytes(transaction, id, &record::encode_unfinished(&unfinished)?)?;
            transaction.open_table(SNAPSHOTS_BY_VM)?.insert((vm.as_str(), sequence), id.as_u128())?;
            if let Some(owed) = owed {
                transaction.open_table(PENDING_HOOKS)?.insert(id.as_u128(), owed)?;
            }
            Ok(unfinished)
        })
    }

    /// Writes down that hooks are about to be called around an operation on the snapshot `id`, of
    /// which `operation` tells enough to call the second half of them later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_pending_hooks(&self, id: SnapshotId, operation: &[u8]) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            transaction.open_table(PENDING_HOOKS)?.insert(id.as_u128(), operation)?;
            Ok(())
        })
    }

    /// Forgets what was owed for the snapshot `id`: the hooks have been called.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear_pending_hooks(&self, id: SnapshotId) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            transaction.open_table(PENDING_HOOKS)?.remove(id.as_u128())?;
            Ok(())
        })
    }

    /// The operations whose hooks were called by half when the service stopped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending_hooks(&self) -> Result<Vec<(SnapshotId, Vec<u8>)>, StoreError> {
        self.handle.read(|transaction| {
            let mut owed = Vec::new();
            for entry in transaction.open_table(PENDING_HOOKS)?.iter()? {
                let (id, operation) = entry?;
                owed.push((SnapshotId::from_u128(id.value()), operation.value().to_vec()));
            }
            Ok(owed)
        })
    }

    /// Writes down a complete `snapshot` that the database does not know, at the place in the order
    /// that it names. Says whether it did: not where it is known by now, or its place is taken.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn adopt(&self, snapshot: &Snapshot) -> Result<bool, StoreError> {
        self.handle.write(|transaction| {
            let place = (snapshot.vm.as_str(), snapshot.sequence);
            let mut by_vm = transaction.open_table(SNAPSHOTS_BY_VM)?;
            let is_known = transaction.open_table(SNAPSHOTS)?.get(snapshot.id.as_u128())?.is_some();
            if is_known || snapshot.sequence > LAST_SEQUENCE || by_vm.get(place)?.is_some() {
                return Ok(false);
            }
            put(transaction, State::Ready, snapshot)?;
            by_vm.insert(place, snapshot.id.as_u128())?;
            // What is made from now on is newer.
            let mut counters = transaction.open_table(schema::COUNTERS)?;
            let last = counters.get("sequence")?.map_or(0, |value| value.value());
            counters.insert("sequence", last.max(snapshot.sequence))?;
            Ok(true)
        })
    }

    /// Writes down that `snapshot` is about to be removed: from now on it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_deletion(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.handle.write(|transaction| put(transaction, State::Deleting, snapshot))
    }

    /// Forgets `snapshot`, of which no file is left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&self, snapshot: &SnapshotFiles) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            transaction.open_table(SNAPSHOTS)?.remove(snapshot.id.as_u128())?;
            // One that another service has made may have the place of another.
            let mut by_vm = transaction.open_table(SNAPSHOTS_BY_VM)?;
            let place = (snapshot.vm.as_str(), snapshot.sequence);
            if by_vm.get(place)?.is_some_and(|id| id.value() == snapshot.id.as_u128()) {
                by_vm.remove(place)?;
            }
            proof::forget(transaction, snapshot.id)?;
            retention::forget(transaction, snapshot.id)
        })
    }

    /// The complete snapshot `id`, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
        Ok(self.record(id)?.and_then(Record::ready))
    }

    /// The snapshot `id` and how far it has come, if it is known at all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record(&self, id: SnapshotId) -> Result<Option<Record>, StoreError> {
        self.handle.read(|transaction| {
            let records = transaction.open_table(SNAPSHOTS)?;
            let bytes = records.get(id.as_u128())?;
            bytes.map(|bytes| record::decode(id.as_u128(), bytes.value())).transpose()
        })
    }

    /// The complete snapshots of `vm`, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshots_of(&self, vm: &VmId) -> Result<Vec<Snapshot>, StoreError> {
        Ok(self.records_of(vm)?.into_iter().filter_map(Record::ready).collect())
    }

    /// The snapshots of `vm`, oldest first, also those that are half made or half gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn records_of(&self, vm: &VmId) -> Result<Vec<Record>, StoreError> {
        self.handle.read(|transaction| {
            let by_vm = transaction.open_table(SNAPSHOTS_BY_VM)?;
            let records = transaction.open_table(SNAPSHOTS)?;
            let mut found = Vec::new();
            for entry in by_vm.range((vm.as_str(), 0)..=(vm.as_str(), u64::MAX))? {
                let id = entry?.1.value();
                if let Some(bytes) = records.get(id)? {
                    found.push(record::decode(id, bytes.value())?);
                }
            }
            Ok(found)
        })
    }

    /// All complete snapshots, in no order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError> {
        self.all(Record::ready)
    }

    /// The ids of all complete snapshots by VM, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot_ids(&self) -> Result<HashMap<VmId, Vec<SnapshotId>>, StoreError> {
        let mut ids: HashMap<VmId, Vec<SnapshotId>> = HashMap::new();
        let mut snapshots = self.snapshots()?;
        snapshots.sort_by_key(|snapshot| snapshot.sequence);
        for snapshot in snapshots {
            ids.entry(snapshot.vm).or_default().push(snapshot.id);
        }
        Ok(ids)
    }

    /// The ids of all snapshots, also of those that are half made or half gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ids(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        self.handle.read(|transaction| {
            let mut ids = HashSet::new();
            for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
                ids.insert(SnapshotId::from_u128(entry?.0.value()));
            }
            Ok(ids)
        })
    }

    /// The snapshots that are half made or half gone.
    ///
    /// # Errors
    /// [`StoreError`]; not for a record that cannot be read, which the log names.
    pub fn unfinished(&self) -> Result<Vec<SnapshotFiles>, StoreError> {
        self.all(Record::unfinished)
    }

    fn all<T>(&self, wanted: impl Fn(Record) -> Option<T>) -> Result<Vec<T>, StoreError> {
        self.handle.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
                let (id, bytes) = entry?;
                // One bad record must not hide the others.
                match record::decode(id.value(), bytes.value()) {
                    Ok(record) => found.extend(wanted(record)),
                    Err(error) => tracing::error!(%error, "passed over"),
                }
            }
            Ok(found)
        })
    }
}

/// Reads every record, and so every page that holds one.
fn read_all(transaction: &ReadTransaction) -> Result<(), StoreError> {
    let records = match transaction.open_table(SNAPSHOTS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        records => records?,
    };
    for entry in records.iter()? {
        let (id, bytes) = entry?;
        record::decode(id.value(), bytes.value())?;
    }
    for entry in transaction.open_table(SNAPSHOTS_BY_VM)?.iter()? {
        entry?;
    }
    Ok(())
}

fn put(transaction: &WriteTransaction, state: State, snapshot: &Snapshot) -> Result<(), StoreError> {
    put_bytes(transaction, snapshot.id, &record::encode(state, snapshot)?)
}

fn put_bytes(transaction: &WriteTransaction, id: SnapshotId, record: &[u8]) -> Result<(), StoreError> {
    transaction.open_table(SNAPSHOTS)?.insert(id.as_u128(), record)?;
    Ok(())
}

#[cfg(test)]
mod tests;
