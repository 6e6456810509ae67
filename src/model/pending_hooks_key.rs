//! The key under which the database keeps the pending post hooks of an operation.

use std::fmt;

use super::SnapshotId;

/// One operation on one snapshot. The creation has the snapshot's id. The deletion has it with another UUID version,
/// which no id of this service has: both operations on a snapshot may have pending hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingHooksKey(u128);

/// The lowest bit of a UUID's version.
const DELETION: u128 = 1 << 76;

impl PendingHooksKey {
    pub fn of_creation(snapshot: SnapshotId) -> Self {
        Self(snapshot.as_u128())
    }

    pub fn of_deletion(snapshot: SnapshotId) -> Self {
        Self(snapshot.as_u128() ^ DELETION)
    }

    /// A key as the database has it.
    pub fn from_u128(stored: u128) -> Self {
        Self(stored)
    }

    pub fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for PendingHooksKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SnapshotId::from_u128(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_earlier_versions_stay() {
        let id: SnapshotId = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d".parse().unwrap();
        let (creation, deletion) = (PendingHooksKey::of_creation(id), PendingHooksKey::of_deletion(id));
        assert_eq!(creation.to_string(), "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d");
        assert_eq!(deletion.to_string(), "6f2cdd2a-9f3c-5f0e-8a52-0c3f3a1b2c4d");
        assert_eq!(PendingHooksKey::from_u128(deletion.as_u128()), deletion);
    }
}
