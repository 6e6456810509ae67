//! How a file system is mounted: `/proc/self/mountinfo` (proc(5)).

use std::fs;
use std::io;

use nix::sys::stat::{major, minor};

/// Whether the file system on `device` is OCFS2 mounted with `localflocks`: flock(2) then does not reach the other
/// hosts that share it.
pub fn keeps_locks_local(device: u64) -> io::Result<bool> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(is_local(&String::from_utf8_lossy(&mounts), &format!("{}:{}", major(device), minor(device))))
}

/// Fields of a line: id, parent, `major:minor`, root, mount point, options, optional fields, `-`, type, source, options
/// of the file system.
fn is_local(mounts: &str, device: &str) -> bool {
    mounts.lines().any(|line| {
        let Some((mount, file_system)) = line.split_once(" - ") else { return false };
        let mut of_file_system = file_system.split_ascii_whitespace();
        let (kind, options) = (of_file_system.next(), of_file_system.nth(1).unwrap_or_default());
        mount.split_ascii_whitespace().nth(2) == Some(device)
            && kind == Some("ocfs2")
            && options.split(',').any(|option| option == "localflocks")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localflocks_counts_only_on_ocfs2() {
        let mounts = "\
            26 30 0:22 / /proc rw,nosuid - proc proc rw\n\
            41 30 8:17 / /OVS/Repositories/a rw,relatime shared:7 master:2 - ocfs2 /dev/sdb1 rw,_netdev,heartbeat=local,nointr,localflocks,user_xattr\n\
            42 30 8:33 / /OVS/Repositories/b rw,relatime - ocfs2 /dev/sdc1 rw,_netdev,heartbeat=local\n\
            43 30 8:49 / /with - dash rw - xfs /dev/sdd1 rw,localflocks\n";
        assert!(is_local(mounts, "8:17"));
        for device in ["8:33", "8:49", "8:1", "0:22"] {
            assert!(!is_local(mounts, device), "{device}");
        }
    }
}
