//! The database: which snapshots exist, which are unfinished or being deleted, and what else survives a restart.
//!
//! The database is an index. Each snapshot folder has a manifest from which the snapshot's record can be rebuilt. The
//! database never holds an extent map.

mod contents;
mod database;
mod definition;
mod error;
mod events;
mod frozen;
mod inspect;
mod overlay;
mod pending_hooks;
mod proof;
mod rebuild;
pub mod record;
mod retention;
mod revoked_log_ins;
mod schema;
mod sessions;
mod shared_leases;
mod tickets;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use crate::model::{
    Described, PendingHooksKey, Snapshot, SnapshotDraft, SnapshotFiles, SnapshotId, UnfinishedSnapshot, VmId,
};

pub use contents::Unreadable;
pub use error::{StoreError, Trouble};
pub use events::{Events, NewEvent, Outcome, QueueChanges, ReportedConditions, Waiting};
pub use frozen::{copies_folder, make_copies_folder};
pub use inspect::{DatabaseState, inspect};
pub use pending_hooks::PendingHookTable;
pub use proof::Proofs;
pub use rebuild::{Rebuild, set_aside};
pub use record::Record;
use record::State;
use retention::put_described;
pub use retention::{KEY_LIFETIME, Retentions};
pub use sessions::{Clock, MAX_RENEWABLE_OF_USER, Renewal, Revocation, RevokedTokens, SessionTables};
pub use tickets::{Added, Ticket, TicketLimits, TicketSource, Tickets};

/// Snapshot id → record. The tables are created by the migrations.
const SNAPSHOTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("snapshots");
/// (VM, sequence, snapshot id).
const SNAPSHOTS_OF_VMS: TableDefinition<'_, (&str, u64, u128), ()> = TableDefinition::new("snapshots_of_vms");

/// The first sequence that [`Store::begin`] assigns. Lower ones are for adopted snapshots
/// (docs/formats.md#sequences).
pub const FIRST_SEQUENCE: u64 = 1 << 32;

/// The highest sequence that an adopted snapshot may name. Without this limit, a damaged manifest could use up all
/// sequences.
pub const LAST_SEQUENCE: u64 = 1 << 48;

/// The database. Its calls block. When a write returns, it is on stable storage.
#[derive(Clone)]
pub struct Store {
    handle: Arc<database::Handle>,
}

impl Store {
    /// Opens the database at `path`, creates it if it does not exist, and migrates it to the current schema. A file
    /// that is not a database of this service stays untouched.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { handle: Arc::new(database::Handle::open(path)?) })
    }

    /// Writes again after a failed write, if nothing else is wrong. The cause may be gone, and the next regular write
    /// may be far off.
    pub fn retry_failed_write(&self) {
        if matches!(self.handle.trouble(), Some(Trouble::WriteFailed(_)))
            && let Err(error) = self.handle.write(|_| Ok(()))
        {
            tracing::warn!(%error, "the database still cannot be written");
        }
    }

    /// What is wrong with the database's file or its disk, even if the database answers.
    pub fn trouble(&self) -> Option<Trouble> {
        self.handle.trouble()
    }

    /// Checks that the database answers.
    pub fn check(&self) -> Result<(), StoreError> {
        self.handle.read(|transaction| {
            transaction.open_table(SNAPSHOTS)?;
            Ok(())
        })
    }

    /// Checks on the disk that every page of the database is whole, and reads every record. Writes wait while its file is
    /// copied; the file stays as it is. Returns the records that this version cannot read.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]. After others, such as [`StoreError::NoRoom`], its state is unknown.
    pub fn verify(&self) -> Result<Unreadable, StoreError> {
        self.handle.verify()
    }

    /// A copy of the database as it is now, checked. Snapshots that are being made are not in it: when the copy is used,
    /// they may be complete, and a start removes unfinished ones. Tickets, renewable log-ins and events for webhooks are
    /// not in it either: some of them end before it is used. Records that this version cannot read are copied as they are. The file has no name,
    /// so it disappears when it is closed. Writes wait while the file is copied.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`]; those of [`Store::verify`].
    pub fn copy(&self) -> Result<(File, Unreadable), StoreError> {
        self.handle.copy()
    }

    /// The records that this version cannot read.
    pub fn unreadable(&self) -> Result<Unreadable, StoreError> {
        Ok(self.handle.read(contents::read_all)?.unreadable)
    }

    /// Records in one transaction that the snapshots of `drafts` are about to be made, and assigns their sequences.
    /// Pending hooks are recorded with them: see [`PendingHookTable::record`].
    ///
    /// # Errors
    /// [`StoreError::FileLost`] if the next start would not find the records.
    pub fn begin(&self, drafts: Vec<(SnapshotDraft, Option<Vec<u8>>)>) -> Result<Vec<UnfinishedSnapshot>, StoreError> {
        if let Some(trouble) = self.trouble().filter(Trouble::loses_writes) {
            return Err(StoreError::FileLost(trouble));
        }
        self.handle.write(|transaction| {
            let begin = |(draft, pending_hooks)| begin_one(transaction, draft, pending_hooks);
            drafts.into_iter().map(begin).collect()
        })
    }

    /// The operations whose post hooks have not run.
    pub fn pending_hooks(&self) -> PendingHookTable<'_> {
        PendingHookTable(&self.handle)
    }

    /// What was learned about snapshots' files after they were finished.
    pub fn proofs(&self) -> Proofs<'_> {
        Proofs(&self.handle)
    }

    /// The tickets.
    pub fn tickets(&self) -> Tickets<'_> {
        Tickets(&self.handle)
    }

    /// How long snapshots are kept.
    pub fn retentions(&self) -> Retentions<'_> {
        Retentions(&self.handle)
    }

    /// The events that wait for webhooks.
    pub fn events(&self) -> Events<'_> {
        Events(&self.handle)
    }

    /// The log-ins that can be renewed, and the revoked tokens.
    pub fn sessions(&self) -> SessionTables<'_> {
        SessionTables(&self.handle)
    }

    /// Records a complete snapshot with the sequence that it names. Returns false, and records nothing, if the snapshot
    /// is known.
    pub fn adopt(&self, described: &Described) -> Result<bool, StoreError> {
        Ok(!self.adopt_all(std::slice::from_ref(described))?.is_empty())
    }

    /// As [`Store::adopt`], in one transaction. Returns the ids of those that were not known.
    pub fn adopt_all(&self, all: &[Described]) -> Result<Vec<SnapshotId>, StoreError> {
        self.handle.write(|transaction| {
            let adopt = |described| adopt_one(transaction, described);
            all.iter().filter_map(|described| adopt(described).transpose()).collect()
        })
    }

    /// Records that the files of `snapshot` are about to be removed, together with the event about it. From now on no
    /// client sees it.
    pub fn begin_deletion(&self, snapshot: &Snapshot, event: Option<&NewEvent>) -> Result<(), StoreError> {
        self.handle.write(|transaction| put_deleting(transaction, snapshot, event))
    }

    /// Records in one transaction that the creations of `snapshots` have failed and their files are about to be removed,
    /// each together with its event. Ignores snapshots in another state, with their events; so a second call does nothing.
    pub fn begin_undo(&self, snapshots: &[(SnapshotId, Option<NewEvent>)]) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            for (id, event) in snapshots {
                let bytes = {
                    let records = transaction.open_table(SNAPSHOTS)?;
                    let Some(bytes) = records.get(id.as_u128())? else { continue };
                    bytes.value().to_vec()
                };
                if matches!(record::decode(id.as_u128(), &bytes)?, Record::Creating(_)) {
                    put_bytes(transaction, *id, &record::with_state(*id, &bytes, State::Deleting)?)?;
                    events::enqueue(transaction, event.as_ref())?;
                }
            }
            Ok(())
        })
    }

    /// Removes the record of a snapshot that has no files any more, together with the event about that.
    pub fn forget(&self, snapshot: &SnapshotFiles, event: Option<&NewEvent>) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            events::enqueue(transaction, event)?;
            transaction.open_table(SNAPSHOTS)?.remove(snapshot.id.as_u128())?;
            let place = (snapshot.vm.as_str(), snapshot.sequence, snapshot.id.as_u128());
            transaction.open_table(SNAPSHOTS_OF_VMS)?.remove(place)?;
            definition::forget(transaction, snapshot.id)?;
            proof::forget(transaction, snapshot.id)?;
            tickets::forget(transaction, snapshot.id)?;
            retention::forget(transaction, snapshot.id)
        })
    }

    /// The snapshot `id`, if it is complete.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
        Ok(self.record(id)?.and_then(Record::ready))
    }

    /// The snapshot `id` in any state.
    pub fn record(&self, id: SnapshotId) -> Result<Option<Record>, StoreError> {
        self.handle.read(|transaction| {
            let records = transaction.open_table(SNAPSHOTS)?;
            let bytes = records.get(id.as_u128())?;
            bytes.map(|bytes| record::decode(id.as_u128(), bytes.value())).transpose()
        })
    }

    /// The complete snapshots of `vm`, oldest first.
    pub fn snapshots_of(&self, vm: &VmId) -> Result<Vec<Snapshot>, StoreError> {
        Ok(self.records_of(vm)?.into_iter().filter_map(Record::ready).collect())
    }

    /// The snapshots of `vm` in any state, oldest first.
    pub fn records_of(&self, vm: &VmId) -> Result<Vec<Record>, StoreError> {
        self.handle.read(|transaction| {
            let of_vms = transaction.open_table(SNAPSHOTS_OF_VMS)?;
            let records = transaction.open_table(SNAPSHOTS)?;
            let mut found = Vec::new();
            for entry in of_vms.range((vm.as_str(), 0, 0)..=(vm.as_str(), u64::MAX, u128::MAX))? {
                let (_, _, id) = entry?.0.value();
                if let Some(bytes) = records.get(id)? {
                    found.push(record::decode(id, bytes.value())?);
                }
            }
            found.sort_by_key(Record::order);
            Ok(found)
        })
    }

    /// All complete snapshots, unsorted.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError> {
        self.all(Record::ready)
    }

    /// The ids of all complete snapshots by VM, oldest first.
    pub fn snapshot_ids(&self) -> Result<HashMap<VmId, Vec<SnapshotId>>, StoreError> {
        let mut ids: HashMap<VmId, Vec<SnapshotId>> = HashMap::new();
        let mut snapshots = self.snapshots()?;
        snapshots.sort_by_key(Snapshot::order);
        for snapshot in snapshots {
            ids.entry(snapshot.vm).or_default().push(snapshot.id);
        }
        Ok(ids)
    }

    /// The ids of all snapshots in any state.
    pub fn ids(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        self.handle.read(|transaction| {
            let mut ids = HashSet::new();
            for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
                ids.insert(SnapshotId::from_u128(entry?.0.value()));
            }
            Ok(ids)
        })
    }

    /// The snapshots that are being made or removed. Records that cannot be read are logged and skipped.
    pub fn unfinished(&self) -> Result<Vec<SnapshotFiles>, StoreError> {
        self.all(Record::unfinished)
    }

    fn all<T>(&self, wanted: impl Fn(Record) -> Option<T>) -> Result<Vec<T>, StoreError> {
        self.handle.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
                let (id, bytes) = entry?;
                // A damaged record must not hide the others.
                match record::decode(id.value(), bytes.value()) {
                    Ok(record) => found.extend(wanted(record)),
                    Err(error) => tracing::error!(%error, "skipping a snapshot's record"),
                }
            }
            Ok(found)
        })
    }
}

fn begin_one(
    transaction: &WriteTransaction,
    draft: SnapshotDraft,
    pending_hooks: Option<Vec<u8>>,
) -> Result<UnfinishedSnapshot, StoreError> {
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
    transaction.open_table(SNAPSHOTS_OF_VMS)?.insert((vm.as_str(), sequence, id.as_u128()), ())?;
    if let Some(pending_hooks) = pending_hooks {
        let key = PendingHooksKey::of_creation(id);
        transaction.open_table(pending_hooks::TABLE)?.insert(key.as_u128(), pending_hooks.as_slice())?;
    }
    Ok(unfinished)
}

/// Returns the id, if the snapshot was not known.
fn adopt_one(transaction: &WriteTransaction, described: &Described) -> Result<Option<SnapshotId>, StoreError> {
    let Snapshot { id, ref vm, sequence, created_at, .. } = described.snapshot;
    let is_known = transaction.open_table(SNAPSHOTS)?.get(id.as_u128())?.is_some();
    if is_known || sequence > LAST_SEQUENCE {
        return Ok(None);
    }
    put_described(transaction, described, created_at)?;
    transaction.open_table(SNAPSHOTS_OF_VMS)?.insert((vm.as_str(), sequence, id.as_u128()), ())?;
    // Sequences that are assigned from now on are higher.
    let mut counters = transaction.open_table(schema::COUNTERS)?;
    let last = counters.get("sequence")?.map_or(0, |value| value.value());
    counters.insert("sequence", last.max(sequence))?;
    Ok(Some(id))
}

/// Removes the records of snapshots that are being made.
fn forget_unfinished(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let mut snapshots = transaction.open_table(SNAPSHOTS)?;
    let mut unfinished = Vec::new();
    for entry in snapshots.iter()? {
        let (id, bytes) = entry?;
        // A record that cannot be read stays as it is.
        if let Ok(Record::Creating(files)) = record::decode(id.value(), bytes.value()) {
            unfinished.push(files);
        }
    }
    let mut of_vms = transaction.open_table(SNAPSHOTS_OF_VMS)?;
    for files in unfinished {
        snapshots.remove(files.id.as_u128())?;
        of_vms.remove((files.vm.as_str(), files.sequence, files.id.as_u128()))?;
    }
    Ok(())
}

fn put(transaction: &WriteTransaction, state: State, snapshot: &Snapshot) -> Result<(), StoreError> {
    put_bytes(transaction, snapshot.id, &record::encode(state, snapshot)?)
}

/// Records that a snapshot is being removed, and removes its tickets, because no user can see and end them any more.
fn put_deleting(
    transaction: &WriteTransaction,
    snapshot: &Snapshot,
    event: Option<&NewEvent>,
) -> Result<(), StoreError> {
    tickets::forget(transaction, snapshot.id)?;
    events::enqueue(transaction, event)?;
    put(transaction, State::Deleting, snapshot)
}

fn put_bytes(transaction: &WriteTransaction, id: SnapshotId, record: &[u8]) -> Result<(), StoreError> {
    transaction.open_table(SNAPSHOTS)?.insert(id.as_u128(), record)?;
    Ok(())
}

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;
