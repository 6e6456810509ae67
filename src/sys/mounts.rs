//! How a file system is mounted: `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

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

/// The mount point of the file system that contains `path`, which has no links. Nothing of the path is accessed.
pub fn mount_point_of(path: &Path) -> io::Result<PathBuf> {
    Ok(deepest(&fs::read("/proc/self/mountinfo")?, path))
}

fn deepest(mounts: &[u8], path: &Path) -> PathBuf {
    let points = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let above = points.map(unescaped).filter(|point| path.starts_with(point));
    above.max_by_key(|point| point.components().count()).unwrap_or_else(|| PathBuf::from("/"))
}

/// Spaces, line ends and backslashes are written as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes, rest) = ([bytes, vec![byte]].concat(), &after[3..]),
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_above_a_path_is_its_mount_point() {
        let mounts = b"\
            26 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            41 26 8:17 / /OVS/Repositories/a rw - ocfs2 /dev/sdb1 rw\n\
            42 26 8:18 / /with\\040space rw - xfs /dev/sdb2 rw\n";
        let of = |path: &str| deepest(mounts, Path::new(path));
        assert_eq!(of("/OVS/Repositories/a/VirtualDisks"), Path::new("/OVS/Repositories/a"));
        assert_eq!(of("/OVS/Repositories/a"), Path::new("/OVS/Repositories/a"));
        assert_eq!(of("/OVS/Repositories/ab"), Path::new("/"));
        assert_eq!(of("/with space/b"), Path::new("/with space"));
        assert_eq!(deepest(b"", Path::new("/x")), Path::new("/"));
    }

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
