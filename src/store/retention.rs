//! How long snapshots are kept, who needs them, and which requests made them.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{
    NewEvent, Record, SNAPSHOTS, State, Store, StoreError, database, definition, events, put, put_deleting, record,
};
use crate::model::retention::Retention;
use crate::model::{Described, RequestKey, Snapshot, SnapshotId, VmId};

/// Snapshot id → expiry, milliseconds since 1970.
pub(super) const EXPIRIES: TableDefinition<'_, u128, i64> = TableDefinition::new("expiries");
/// (snapshot id, user) → end of the lease, milliseconds since 1970.
pub(super) const LEASES: TableDefinition<'_, (u128, &str), i64> = TableDefinition::new("leases");
/// (user, VM, Idempotency-Key) → [`KeyUse`].
pub(super) const IDEMPOTENCY_KEYS: TableDefinition<'_, (&str, &str, &str), &[u8]> =
    TableDefinition::new("idempotency_keys");

/// How long a used key is remembered.
pub const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Beyond this number the oldest keys are dropped.
const MAX_KEYS: usize = 10_000;

/// The request that used a key. These are the stored bytes: postcard writes the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// SHA-256 of the request.
    pub digest: [u8; 32],
    snapshot: u128,
    used_at_ms: i64,
}

impl KeyUse {
    /// The snapshot that the request made.
    pub fn snapshot(&self) -> SnapshotId {
        SnapshotId::from_u128(self.snapshot)
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        is_valid(self.used_at_ms, now)
    }
}

/// A key stays valid when the clock is set back: its request must not make a second snapshot.
fn is_valid(used_at_ms: i64, now: Timestamp) -> bool {
    let age = now.as_millisecond().saturating_sub(used_at_ms);
    age < i64::try_from(KEY_LIFETIME.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Records in one transaction that `snapshots` are complete, each with its event. From now on clients see them.
    ///
    /// # Errors
    /// After an error the records may still have been written, all or none: check with [`Store::record`].
    pub fn commit(&self, snapshots: &[(Described, Option<NewEvent>)]) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            snapshots.iter().try_for_each(|(described, event)| {
                put_described(transaction, described, Timestamp::now())?;
                events::enqueue(transaction, event.as_ref())
            })
        })
    }

    /// What this user's key was used for on this VM, in the last 24 hours.
    pub fn key_use(&self, vm: &VmId, key: &RequestKey, now: Timestamp) -> Result<Option<KeyUse>, StoreError> {
        self.handle.read(|transaction| {
            let keys = transaction.open_table(IDEMPOTENCY_KEYS)?;
            let found = keys.get((key.user.as_str(), vm.as_str(), key.key.as_str()))?;
            Ok(found.and_then(|bytes| decode(bytes.value())).filter(|found| found.is_valid(now)))
        })
    }
}

/// Records a complete snapshot, with all that its manifest says. Its request has used its key at `used_at`.
pub(super) fn put_described(
    transaction: &WriteTransaction,
    described: &Described,
    used_at: Timestamp,
) -> Result<(), StoreError> {
    let Described { snapshot, expires_at, request, definition, is_of_group: _ } = described;
    put(transaction, State::Ready, snapshot)?;
    definition::put(transaction, snapshot.id, definition.as_ref())?;
    if let Some(expiry) = expires_at {
        transaction.open_table(EXPIRIES)?.insert(snapshot.id.as_u128(), expiry.as_millisecond())?;
    }
    match request {
        Some(key) => record_key_use(transaction, snapshot, key, used_at),
        None => Ok(()),
    }
}

/// The expiries and leases of a [`Store`].
pub struct Retentions<'a>(pub(super) &'a database::Handle);

impl Retentions<'_> {
    pub fn of(&self, id: SnapshotId) -> Result<Retention, StoreError> {
        self.0.read(|transaction| {
            let timestamp = |ms| timestamp(id, ms);
            let id = id.as_u128();
            let expiry = transaction.open_table(EXPIRIES)?.get(id)?.map(|ms| ms.value());
            let mut retention = Retention { expires_at: expiry.map(timestamp).transpose()?, leased_until: None };
            // Of several leases the longest counts.
            for lease in transaction.open_table(LEASES)?.range((id, "")..)? {
                let (key, until) = lease?;
                if key.value().0 != id {
                    break;
                }
                retention.leased_until = retention.leased_until.max(Some(timestamp(until.value())?));
            }
            Ok(retention)
        })
    }

    /// The number of leases that end after `now`.
    pub fn leases(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.0.read(|transaction| {
            let mut count = 0;
            for lease in transaction.open_table(LEASES)?.iter()? {
                count += usize::from(lease?.1.value() > now.as_millisecond());
            }
            Ok(count)
        })
    }

    /// The snapshots that have an expiry.
    pub fn expiring(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        self.0.read(|transaction| {
            let mut ids = HashSet::new();
            for entry in transaction.open_table(EXPIRIES)?.iter()? {
                ids.insert(SnapshotId::from_u128(entry?.0.value()));
            }
            Ok(ids)
        })
    }

    /// Records that `user` needs the snapshot `id` until the given time. It replaces the user's former lease. Returns
    /// false if the snapshot is not complete.
    pub fn lease(&self, id: SnapshotId, user: &str, until: Timestamp) -> Result<bool, StoreError> {
        self.0.write(|transaction| {
            let is_there = is_ready(transaction, id)?;
            if is_there {
                transaction.open_table(LEASES)?.insert((id.as_u128(), user), until.as_millisecond())?;
            }
            Ok(is_there)
        })
    }

    /// Ends the lease of `user` on the snapshot `id`.
    pub fn release(&self, id: SnapshotId, user: &str) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(LEASES)?.remove((id.as_u128(), user))?;
            Ok(())
        })
    }

    /// As [`Store::begin_deletion`], if the snapshot is complete and no lease on it ends after `now`. Check and record
    /// are one transaction, so no lease is granted in between. Returns whether the deletion has begun.
    pub fn begin_sweep(
        &self,
        snapshot: &Snapshot,
        now: Timestamp,
        event: Option<&NewEvent>,
    ) -> Result<bool, StoreError> {
        self.0.write(|transaction| {
            if !is_ready(transaction, snapshot.id)? || is_leased(transaction, snapshot.id, now)? {
                return Ok(false);
            }
            put_deleting(transaction, snapshot, event)?;
            Ok(true)
        })
    }
}

/// The key of the request that made the snapshot stays known.
pub(super) fn forget(transaction: &WriteTransaction, id: SnapshotId) -> Result<(), StoreError> {
    let id = id.as_u128();
    transaction.open_table(EXPIRIES)?.remove(id)?;
    // A range over all users has no upper bound: there is no last user name.
    let mut leases = transaction.open_table(LEASES)?;
    let mut users = Vec::new();
    for lease in leases.range((id, "")..)? {
        let (key, _) = lease?;
        match key.value() {
            (of, user) if of == id => users.push(user.to_owned()),
            _ => break,
        }
    }
    for user in users {
        leases.remove((id, user.as_str()))?;
    }
    Ok(())
}

fn is_ready(transaction: &WriteTransaction, id: SnapshotId) -> Result<bool, StoreError> {
    let records = transaction.open_table(SNAPSHOTS)?;
    let bytes = records.get(id.as_u128())?;
    let found = bytes.map(|bytes| record::decode(id.as_u128(), bytes.value())).transpose()?;
    Ok(found.as_ref().is_some_and(Record::is_ready))
}

fn is_leased(transaction: &WriteTransaction, id: SnapshotId, now: Timestamp) -> Result<bool, StoreError> {
    for lease in transaction.open_table(LEASES)?.range((id.as_u128(), "")..)? {
        let (key, until) = lease?;
        if key.value().0 != id.as_u128() {
            break;
        }
        if until.value() > now.as_millisecond() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn record_key_use(
    transaction: &WriteTransaction,
    snapshot: &Snapshot,
    key: &RequestKey,
    used_at: Timestamp,
) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let new = KeyUse { digest: key.digest, snapshot: snapshot.id.as_u128(), used_at_ms: used_at.as_millisecond() };
    if !new.is_valid(now) {
        return Ok(());
    }
    let mut keys = transaction.open_table(IDEMPOTENCY_KEYS)?;
    let mut known = Vec::new();
    for entry in keys.iter()? {
        let (name, bytes) = entry?;
        let (user, vm, key) = name.value();
        // A key that cannot be read is dropped first.
        let used_at_ms = decode(bytes.value()).map_or(i64::MIN, |known| known.used_at_ms);
        known.push((used_at_ms, [user.to_owned(), vm.to_owned(), key.to_owned()]));
    }
    // Oldest first, so that those past their lifetime are in front.
    known.sort_by_key(|(used_at_ms, _)| *used_at_ms);
    let too_many = (known.len() + 1).saturating_sub(MAX_KEYS);
    for (index, (used_at_ms, [user, vm, key])) in known.iter().enumerate() {
        if index < too_many || !is_valid(*used_at_ms, now) {
            keys.remove((user.as_str(), vm.as_str(), key.as_str()))?;
        }
    }
    let damaged = |error: postcard::Error| StoreError::Record { id: snapshot.id, cause: error.to_string() };
    let bytes = postcard::to_stdvec(&new).map_err(damaged)?;
    keys.insert((key.user.as_str(), snapshot.vm.as_str(), key.key.as_str()), bytes.as_slice())?;
    Ok(())
}

/// A key use that cannot be read counts as none. At worst a repeated request makes a second snapshot.
fn decode(bytes: &[u8]) -> Option<KeyUse> {
    postcard::from_bytes(bytes)
        .inspect_err(|error| tracing::error!(%error, "the use of an idempotency key cannot be read"))
        .ok()
}

pub(super) fn timestamp(id: SnapshotId, ms: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(ms).map_err(|error| StoreError::Record { id, cause: error.to_string() })
}

#[cfg(test)]
#[path = "retention/tests.rs"]
mod tests;
