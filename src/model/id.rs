//! Names and ids from outside the program. They are checked once, when they are parsed.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a valid id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidId {
    #[error("a VM is named by 32 hexadecimal digits, or by its dashed uuid")]
    Vm,
    #[error("a snapshot is named by a uuid such as 6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d")]
    Snapshot,
    #[error("a disk is named by one file name that does not start with a dot")]
    Disk,
    #[error("a repository is named by one folder name that does not start with a dot")]
    Repository,
}

/// The id of a virtual machine: 32 lower-case hexadecimal digits, such as `0004fb00000600000000000000000001`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(String);

impl FromStr for VmId {
    type Err = InvalidId;

    /// Accepts the digits with or without the dashes of a UUID, in either case.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let dashed = text.len() == 36 && [8, 13, 18, 23].iter().all(|&i| text.as_bytes()[i] == b'-');
        let digits = if dashed { text.replace('-', "") } else { text.to_owned() };
        if digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(digits.to_ascii_lowercase()))
        } else {
            Err(InvalidId::Vm)
        }
    }
}

impl VmId {
    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits in the groups of a UUID: 8-4-4-4-12.
    pub fn dashed(&self) -> String {
        let d = &self.0;
        format!("{}-{}-{}-{}-{}", &d[..8], &d[8..12], &d[12..16], &d[16..20], &d[20..])
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A random UUID, written with dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(uuid::Uuid);

impl SnapshotId {
    pub fn from_u128(number: u128) -> Self {
        Self(uuid::Uuid::from_u128(number))
    }

    /// The key in the database.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidId;

    /// Accepts only the form with dashes, so that a snapshot has one address.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.len() != 36 {
            return Err(InvalidId::Snapshot);
        }
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| InvalidId::Snapshot)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `NAME_MAX` of limits.h, bytes.
const NAME_MAX: usize = 255;

/// Whether `name` is one path component that neither leaves its folder nor is hidden.
fn is_visible_component(name: &str) -> bool {
    let visible = !name.is_empty() && !name.starts_with('.');
    let one_component = !name.contains(|c: char| c == '/' || c.is_control());
    visible && one_component && name.len() <= NAME_MAX
}

macro_rules! component {
    ($(#[$doc:meta])* $name:ident, $invalid:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(name: &str) -> Result<Self, InvalidId> {
                if is_visible_component(name) { Ok(Self(name.to_owned())) } else { Err(InvalidId::$invalid) }
            }
        }

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

component! {
    /// The name of a disk in a snapshot, and of its file there, such as `0004fb0000120000.img`.
    ///
    /// It is one visible path component: joined to a folder, it cannot leave that folder.
    DiskName, Disk
}

component! {
    /// The name of a repository's folder, such as `0004fb0000030000a1b2c3d4e5f60718`.
    RepositoryId, Repository
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_named_by_its_digits_or_its_uuid() {
        let plain: VmId = "0004fb00000600000000000000000001".parse().unwrap();
        let dashed: VmId = "0004FB00-0006-0000-0000-000000000001".parse().unwrap();
        assert_eq!(plain, dashed);
        assert_eq!(plain.dashed(), "0004fb00-0006-0000-0000-000000000001");
        for bad in
            ["", "0004", "..", "0004fb0000060000000000000000000g", "0004fb00-00060000-0000-0000-00000000001", "é"]
        {
            assert_eq!(bad.parse::<VmId>(), Err(InvalidId::Vm), "{bad:?}");
        }
    }

    #[test]
    fn a_snapshot_has_one_spelling() {
        let id: SnapshotId = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d".parse().unwrap();
        assert_eq!(id.to_string(), "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d");
        for bad in [
            "",
            "6f2cdd2a9f3c4f0e8a520c3f3a1b2c4d",
            "{6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d}",
            "../../../../../../../../../etc/passwd",
        ] {
            assert_eq!(bad.parse::<SnapshotId>(), Err(InvalidId::Snapshot), "{bad:?}");
        }
    }

    #[test]
    fn a_disk_name_cannot_leave_its_folder() {
        assert!("data disk,1.img".parse::<DiskName>().is_ok());
        let long = "x".repeat(256);
        for bad in ["", ".", "..", ".hidden", "a/b", "/etc/shadow", "a\0b", "a\nb", &long] {
            assert_eq!(bad.parse::<DiskName>(), Err(InvalidId::Disk), "{bad:?}");
        }
    }
}
