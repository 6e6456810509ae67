//! OpenFn long snapshots are kept, who needs them, and which request made them.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Record, SNAPSHOTS, State, Store, StoreError, put, record};
use crate::model::retention::Retention;
use crate::model::{Snapshot, SnapshotId, VmId};

/// Snapshot id → when it expires, milliseconds since 1970.
const EXPIRIES: TableDefinition<'_, u128, i64> = TableDefinition::new("expiries");
/// (snapshot id, user) → until when that user needs it, milliseconds since 1970.
const LEASES: TableDefinition<'_, (u128, &str), i64> = TableDefinition::new("leases");
/// (user, VM, Idempotency-Key) → what it made.
const IDEMPOTENCY_KEYS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("idempotency_keys");

/// OpenFn long a key is remembered.
pub const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Keys remembered at a time; past that, the oldest go.
const MAX_KEYS: usize = 10_000;

/// What a client repeats where it does not know whether its request was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The user who sends it.
    pub user: String,
    /// The header `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of what is asked for.
    pub digest: [u8; 32],
}

/// What is written down together with a new snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// When the snapshot expires.
    pub expires_at: Option<Timestamp>,
    /// The key of the request that made it.
    pub key: Option<RequestKey>,
}

/// What a key was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// SHA-256 of what was asked for.
    pub digest: [u8; 32],
    snapshot: u128,
    used_at_ms: i64,
}

impl KeyUse {
    /// The snapshot that was made.
    pub fn snapshot(&self) -> SnapshotId {
        SnapshotId::from_u128(self.snapshot)
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        is_valid(self.used_at_ms, now)
    }
}

/// Also where the clock was set back: a key that is remembered makes no second snapshot.
fn is_valid(used_at_ms: i64, now: Timestamp) -> bool {
    let age = now.as_millisecond().saturating_sub(used_at_ms);
    age < i64::try_from(KEY_LIFETIME.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Writes down that `snapshot` is complete, and what was ordered with it: from now on it is
    /// there.
    ///
    /// # Errors
    /// [`StoreError`]. It may have been written all the same: ask [`Store::record`].
    pub fn commit(&self, snapshot: &Snapshot, options: &CommitOptions) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            put(transaction, State::Ready, snapshot)?;
            if let Some(expiry) = options.expires_at {
                transaction.open_table(EXPIRIES)?.insert(snapshot.id.as_u128(), expiry.as_millisecond())?;
            }
            match &options.key {
                Some(key) => record_key_use(transaction, snapshot, key),
                None => Ok(()),
            }
        })
    }

    /// What the key was used for, by this user for this VM, in the last 24 hours.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn key_use(&self, vm: &VmId, key: &RequestKey, now: Timestamp) -> Result<Option<KeyUse>, StoreError> {
        self.handle.read(|transaction| {
            let keys = transaction.open_table(IDEMPOTENCY_KEYS)?;
            let found = keys.get((key.user.as_str(), vm.as_str(), key.key.as_str()))?;
            Ok(found.and_then(|bytes| decode(bytes.value())).filter(|found| found.is_valid(now)))
        })
    }

    /// Until when the snapshot `id` is kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn retention(&self, id: SnapshotId) -> Result<Retention, StoreError> {
        self.handle.read(|transaction| {
            let timestamp = |ms| timestamp(id, ms);
            let id = id.as_u128();
            let expiry = transaction.open_table(EXPIRIES)?.get(id)?.map(|ms| ms.value());
            let mut retention = Retention { expires_at: expiry.map(timestamp).transpose()?, leased_until: None };
            // Who holds more than one lease of it is as well off as with the longest.
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

    /// The snapshots that expire.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn expiring(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        self.handle.read(|transaction| {
            let mut ids = HashSet::new();
            for entry in transaction.open_table(EXPIRIES)?.iter()? {
                ids.insert(SnapshotId::from_u128(entry?.0.value()));
            }
            Ok(ids)
        })
    }

    /// Writes down that `user` needs the snapshot `id` until then, whatever was said before. Not
    /// where the snapshot is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease(&self, id: SnapshotId, user: &str, until: Timestamp) -> Result<bool, StoreError> {
        self.handle.write(|transaction| {
            let is_there = is_ready(transaction, id)?;
            if is_there {
                transaction.open_table(LEASES)?.insert((id.as_u128(), user), until.as_millisecond())?;
            }
            Ok(is_there)
        })
    }

    /// Writes down that `user` does not need the snapshot `id` any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release(&self, id: SnapshotId, user: &str) -> Result<(), StoreError> {
        self.handle.write(|transaction| {
            transaction.open_table(LEASES)?.remove((id.as_u128(), user))?;
            Ok(())
        })
    }

    /// As [`Store::begin_deletion`], where the snapshot is there and nobody has taken a lease on it
    /// that ends after `now`: in one step, so that no lease is given in between. Whether it was so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_sweep(&self, snapshot: &Snapshot, now: Timestamp) -> Result<bool, StoreError> {
        self.handle.write(|transaction| {
            if !is_ready(transaction, snapshot.id)? || is_leased(transaction, snapshot.id, now)? {
                return Ok(false);
            }
            put(transaction, State::Deleting, snapshot)?;
            Ok(true)
        })
    }
}

/// Forgets the retention of a snapshot that is forgotten. What its key made stays known.
pub(super) fn forget(transaction: &WriteTransaction, id: SnapshotId) -> Result<(), StoreError> {
    let id = id.as_u128();
    transaction.open_table(EXPIRIES)?.remove(id)?;
    // Users' names have no last one to end a range with.
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

fn record_key_use(transaction: &WriteTransaction, snapshot: &Snapshot, key: &RequestKey) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let new = KeyUse { digest: key.digest, snapshot: snapshot.id.as_u128(), used_at_ms: now.as_millisecond() };
    let mut keys = transaction.open_table(IDEMPOTENCY_KEYS)?;
    let mut known = Vec::new();
    for entry in keys.iter()? {
        let (name, bytes) = entry?;
        let (user, vm, key) = name.value();
        // One that cannot be read goes as the oldest.
        let used_at_ms = decode(bytes.value()).map_or(i64::MIN, |known| known.used_at_ms);
        known.push((used_at_ms, [user.to_owned(), vm.to_owned(), key.to_owned()]));
    }
    // The oldest first, and with it all that are forgotten.
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

/// A use that cannot be read is as none: the worst that it costs is a second snapshot.
fn decode(bytes: &[u8]) -> Option<KeyUse> {
    postcard::from_bytes(bytes).inspect_err(|error| tracing::error!(%error, "a key's use cannot be read")).ok()
}

fn timestamp(id: SnapshotId, ms: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(ms).map_err(|error| StoreError::Record { id, cause: error.to_string() })
}

#[cfg(test)]
#[path = "retention/tests.rs"]
mod tests;
