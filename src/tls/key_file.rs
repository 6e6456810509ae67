//! The file of the service's private key, which only its owner may read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

/// Opens the key. Also returns its [`insecurity`], of the open file, so that what is checked is what is read.
pub(super) fn open(path: &Path) -> io::Result<(impl Read, Option<String>)> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    Ok((file, insecurity(found.uid(), found.mode(), path)))
}

/// Why users who should not know the key may read it or replace it, and what to do. `None` if they may not.
///
/// Only root can give a file to a group other than its own, so a group that may read a file of root was chosen for it,
/// as for a reverse proxy that uses the same key. A group that may read a file of another user need not be.
pub fn insecurity(owner: u32, mode: u32, path: &Path) -> Option<String> {
    let shown = path.display();
    let own = geteuid().as_raw();
    if owner != 0 && owner != own {
        return Some(format!("belongs to the user {owner}, who can read and replace it; chown root {shown}"));
    }
    let allowed = if owner == 0 { 0o740 } else { 0o700 };
    (mode & 0o777 & !allowed != 0).then(|| {
        let others = if mode & 0o007 != 0 { "all users" } else { "its group" };
        format!(
            "is the private key, but {others} may read or write it: its mode is {:04o}; chmod 600 {shown}",
            mode & 0o7777
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_a_group_of_root_may_read_a_key() {
        let problem = |owner, mode| insecurity(owner, mode, Path::new("/k.pem"));
        for mode in [0o100_600, 0o100_400, 0o100_640, 0o100_440] {
            assert_eq!(problem(0, mode), None, "{mode:o}");
        }
        for mode in [0o100_644, 0o100_604, 0o100_660, 0o100_602, 0o100_666] {
            assert!(problem(0, mode).unwrap().contains("chmod 600 /k.pem"), "{mode:o}");
        }
        assert!(problem(3_999_999_999, 0o100_600).unwrap().contains("chown root"));
    }
}
