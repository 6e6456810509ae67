//! The leases on the snapshots of a repository: one file for each snapshot and user in `.pool/leases/`. All exporters of a
//! pool respect them.

use std::io;

use serde::{Deserialize, Serialize};

use super::listing::Version;
use super::pool;
use crate::model::{Lease, SnapshotId, hex};
use crate::sys::folder::{Folder, UnexpectedEntry};

const FOLDER: &str = "leases";

/// The most bytes of a file.
const MAX_BYTES: usize = 4096;

/// The most files that are read.
const MAX_LEASES: usize = 10_000;

/// The content of a file. Fields can be added later.
#[derive(Serialize, Deserialize)]
struct Document {
    user: String,
    until: jiff::Timestamp,
}

/// All leases at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    /// `None`: there never was one.
    pub version: Option<Version>,
    pub all: Vec<Lease>,
}

/// `<snapshot id>.<start of the BLAKE3 of the user>`: a user's name can have any characters.
fn file_name(snapshot: SnapshotId, user: &str) -> String {
    let hash = blake3::hash(user.as_bytes());
    format!("{snapshot}.{}", hex(&hash.as_bytes()[..16]))
}

/// Writes a lease to stable storage. It replaces the user's former one.
///
/// # Errors
/// Those of creating, writing and renaming a file.
pub fn put(root: &Folder, lease: &Lease) -> io::Result<()> {
    let Lease { snapshot, user, until } = lease;
    let text = serde_json::to_vec(&Document { user: user.clone(), until: *until })?;
    if text.len() > MAX_BYTES {
        return Err(io::Error::other("the user's name is too long for a lease"));
    }
    pool::write(&pool::make_folder(root, FOLDER)?, &file_name(*snapshot, user), &text)
}

/// Ends the lease of `user`, if there is one.
pub fn remove(root: &Folder, snapshot: SnapshotId, user: &str) -> io::Result<()> {
    match pool::folder(root, FOLDER)? {
        Some(folder) => pool::remove(&folder, file_name(snapshot, user)),
        None => Ok(()),
    }
}

/// Ends all leases on a snapshot.
pub fn remove_all(root: &Folder, snapshot: SnapshotId) -> io::Result<()> {
    let Some(folder) = pool::folder(root, FOLDER)? else { return Ok(()) };
    let prefix = format!("{snapshot}.");
    let of_snapshot = |name: &&std::ffi::OsString| name.to_str().is_some_and(|name| name.starts_with(&prefix));
    folder.entries()?.iter().filter(of_snapshot).try_for_each(|name| pool::remove(&folder, name))
}

/// Reads all leases of a repository, and calls `progress` for each. Returns nothing if `known` is the current version; see
/// [`listing::read`](super::listing::read). A file that cannot be understood counts as a lease without an end: it may have
/// been one, and a snapshot that a client needs must not be deleted.
///
/// # Errors
/// Those of reading the folder and its files; more than 10,000 leases.
pub fn read(root: &Folder, known: Option<Option<Version>>, progress: &dyn Fn()) -> io::Result<Option<Leases>> {
    let folder = pool::folder(root, FOLDER)?;
    let version = folder.as_ref().map(Version::of).transpose()?;
    if known == Some(version) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for name in folder.as_ref().map_or(Ok(Vec::new()), Folder::entries)? {
        let snapshot = name.to_str().and_then(|name| name.split_once('.'));
        // Another name, or a file that is being written.
        let Some((snapshot, hash)) = snapshot.filter(|(_, hash)| hash.len() == 32) else { continue };
        let (Ok(snapshot), Some(folder)) = (snapshot.parse(), &folder) else { continue };
        if all.len() == MAX_LEASES {
            return Err(io::Error::other(format!("more than {MAX_LEASES} leases")));
        }
        progress();
        let text = match folder.read_small(&name, MAX_BYTES) {
            // It has ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if UnexpectedEntry::of(&error).is_some() => Vec::new(),
            text => text?,
        };
        let own = |document: &Document| file_name(snapshot, &document.user).ends_with(hash);
        let document = serde_json::from_slice(&text).ok().filter(own);
        let Document { user, until } = document.unwrap_or_else(|| {
            tracing::warn!(folder = ?folder.path(), file = ?name, "not a lease; until it is removed, the snapshot does not expire");
            Document { user: format!("unreadable lease {hash}"), until: jiff::Timestamp::MAX }
        });
        all.push(Lease { snapshot, user, until });
    }
    Ok(Some(Leases { version, all }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

    fn lease(id: &str, user: &str, until: &str) -> Lease {
        Lease { snapshot: id.parse().unwrap(), user: user.to_owned(), until: until.parse().unwrap() }
    }

    #[test]
    fn lease_is_written_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        let none = read(&root, None, &|| ()).unwrap().unwrap();
        assert_eq!(none, Leases::default());
        assert_eq!(read(&root, Some(none.version), &|| ()).unwrap(), None);

        let other = ID.replace('6', "7");
        let users = ["admin", "../../etc/passwd", "admin@example.com \u{1f512}"];
        let mut written: Vec<_> = users.map(|user| lease(ID, user, "2030-01-01T00:00:00Z")).into();
        written.push(lease(&other, "admin", "2031-01-01T00:00:00Z"));
        for lease in &written {
            put(&root, &self::lease(&lease.snapshot.to_string(), &lease.user, "2029-01-01T00:00:00Z")).unwrap();
            put(&root, lease).unwrap();
        }
        let sorted = |leases: &[Lease]| {
            let mut all: Vec<_> = leases.iter().map(|lease| format!("{lease:?}")).collect();
            all.sort();
            all
        };
        let found = read(&root, Some(none.version), &|| ()).unwrap().unwrap();
        assert_eq!(sorted(&found.all), sorted(&written));
        assert_eq!(read(&root, Some(found.version), &|| ()).unwrap(), None);

        remove(&root, ID.parse().unwrap(), "admin").unwrap();
        remove(&root, ID.parse().unwrap(), "admin").unwrap();
        assert_eq!(read(&root, None, &|| ()).unwrap().unwrap().all.len(), 3);
        remove_all(&root, ID.parse().unwrap()).unwrap();
        assert_eq!(read(&root, None, &|| ()).unwrap().unwrap().all, written[3..]);
    }

    #[test]
    fn damaged_lease_has_no_end_and_an_unfinished_one_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        put(&root, &lease(ID, "admin", "2030-01-01T00:00:00Z")).unwrap();
        let folder = dir.path().join("CoriolisSnapshots/.pool/leases");
        let name = file_name(ID.parse().unwrap(), "admin");
        fs::write(folder.join(format!("{name}.{ID}.new")), "{").unwrap();
        fs::write(folder.join("README"), "").unwrap();
        assert_eq!(read(&root, None, &|| ()).unwrap().unwrap().all.len(), 1);
        fs::rename(folder.join(&name), folder.join(file_name(ID.parse().unwrap(), "eve"))).unwrap();
        let found = read(&root, None, &|| ()).unwrap().unwrap().all;
        assert_eq!((found.len(), found[0].until), (1, jiff::Timestamp::MAX), "it has the lease of another user");
        fs::remove_file(folder.join(file_name(ID.parse().unwrap(), "eve"))).unwrap();
        for bytes in [&b""[..], b"{}", &[b'x'; MAX_BYTES + 1]] {
            fs::write(folder.join(&name), bytes).unwrap();
            let found = read(&root, None, &|| ()).unwrap().unwrap().all;
            assert_eq!((found.len(), found[0].until), (1, jiff::Timestamp::MAX));
        }
        assert!(put(&root, &lease(ID, &"x".repeat(MAX_BYTES), "2030-01-01T00:00:00Z")).is_err());
    }
}
