//! The leases as the exporters of a pool share them. The repositories have them too, and they count.

use redb::ReadableTable;

use super::retention::{LEASES, timestamp};
use super::{Retentions, SNAPSHOTS, StoreError, record, schema};
use crate::model::{Lease, RepositoryId, SnapshotId};

/// Counter `leases_shared/<repository>`: 1 if the leases of its snapshots were written into it.
const SHARED: &str = "leases_shared/";

impl Retentions<'_> {
    /// Whether the repository has all leases of its snapshots.
    pub fn are_shared(&self, repository: &RepositoryId) -> Result<bool, StoreError> {
        self.0.read(|transaction| {
            let counters = transaction.open_table(schema::COUNTERS)?;
            Ok(counters.get(format!("{SHARED}{repository}").as_str())?.is_some())
        })
    }

    /// Records that the repository has all leases of its snapshots.
    pub fn set_shared(&self, repository: &RepositoryId) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(schema::COUNTERS)?.insert(format!("{SHARED}{repository}").as_str(), 1)?;
            Ok(())
        })
    }

    /// Records that leases are only in the database from now on.
    pub fn end_sharing(&self) -> Result<(), StoreError> {
        let shared: Vec<String> = self.0.read(|transaction| {
            let counters = transaction.open_table(schema::COUNTERS)?;
            let mut shared = Vec::new();
            for counter in counters.iter()? {
                let name = counter?.0.value().to_owned();
                shared.extend(Some(name).filter(|name| name.starts_with(SHARED)));
            }
            Ok(shared)
        })?;
        if shared.is_empty() {
            return Ok(());
        }
        self.0.write(|transaction| {
            let mut counters = transaction.open_table(schema::COUNTERS)?;
            shared.iter().try_for_each(|name| counters.remove(name.as_str()).map(drop))?;
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
                // One that cannot be read is not swept either.
                let Ok(record) = record::decode(id, bytes.value()) else { return Ok(false) };
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
