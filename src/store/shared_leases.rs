//! The leases as the exporters of a pool share them. The repositories have them too, and they count.

use redb::ReadableTable;

use super::retention::{LEASES, timestamp};
use super::{Retentions, SNAPSHOTS, StoreError, record, schema};
use crate::model::{Lease, RepositoryId, SnapshotId};

/// Counter: 1 if all leases were written into the repositories.
const SHARED: &str = "leases_shared";

impl Retentions<'_> {
    /// Whether the repositories have all leases.
    pub fn are_shared(&self) -> Result<bool, StoreError> {
        self.0.read(|transaction| {
            let counters = transaction.open_table(schema::COUNTERS)?;
            Ok(counters.get(SHARED)?.is_some())
        })
    }

    /// Records whether the repositories have all leases from now on.
    pub fn set_shared(&self, are_shared: bool) -> Result<(), StoreError> {
        if self.are_shared()? == are_shared {
            return Ok(());
        }
        self.0.write(|transaction| {
            let mut counters = transaction.open_table(schema::COUNTERS)?;
            if are_shared {
                counters.insert(SHARED, 1)?;
            } else {
                counters.remove(SHARED)?;
            }
            Ok(())
        })
    }

    /// All leases, also those that have ended.
    pub fn all_leases(&self) -> Result<Vec<Lease>, StoreError> {
        self.0.read(|transaction| {
            let mut all = Vec::new();
            for lease in transaction.open_table(LEASES)?.iter()? {
                let (key, until) = lease?;
                let (id, user) = key.value();
                let snapshot = SnapshotId::from_u128(id);
                all.push(Lease { snapshot, user: user.to_owned(), until: timestamp(snapshot, until.value())? });
            }
            Ok(all)
        })
    }

    /// Replaces the leases on the snapshots whose first repository is `repository` by these.
    /// Leases on snapshots that are not complete are left out.
    pub fn replace_leases(&self, repository: &RepositoryId, leases: &[Lease]) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let is_there = |id: u128| -> Result<bool, StoreError> {
                let records = transaction.open_table(SNAPSHOTS)?;
                let Some(bytes) = records.get(id)? else { return Ok(false) };
                let record = record::decode(id, bytes.value())?;
                Ok(record.is_ready() && record.repositories().first() == Some(&repository))
            };
            let mut table = transaction.open_table(LEASES)?;
            let mut former = Vec::new();
            for lease in table.iter()? {
                let (key, _) = lease?;
                let (id, user) = key.value();
                former.push((id, user.to_owned()));
            }
            for (id, user) in former {
                if is_there(id)? {
                    table.remove((id, user.as_str()))?;
                }
            }
            for Lease { snapshot, user, until } in leases {
                if is_there(snapshot.as_u128())? {
                    table.insert((snapshot.as_u128(), user.as_str()), until.as_millisecond())?;
                }
            }
            Ok(())
        })
    }
}
