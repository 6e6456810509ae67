//! How a file system is mounted: `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Whether flock(2) on the file system on `device` does not reach the other hosts that share it: OCFS2 mounted with
/// `localflocks`.
pub fn keeps_locks_local(device: u64) -> io::Result<bool> {
    let device = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(lines(&mounts).any(|mount| mount.device == device.as_bytes() && mount.keeps_locks_local()))
}

/// As [`keeps_locks_local`], for the file system that contains `path`, which has no links. Nothing of the path is
/// accessed, so this does not hang with it.
pub fn keeps_locks_local_at(path: &Path) -> io::Result<bool> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(deepest(&mounts, path).is_some_and(|mount| mount.keeps_locks_local()))
}

/// A line of mountinfo: id, parent, `major:minor`, root, mount point, options, optional fields, `-`, type, source, options
/// of the file system.
struct Mount<'a> {
    device: &'a [u8],
    point: PathBuf,
    kind: &'a [u8],
    /// Those of the file system.
    options: &'a [u8],
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (device, point) = (fields.nth(2)?, unescaped(fields.nth(1)?));
        let mut of_file_system = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, options) = (of_file_system.next()?, of_file_system.nth(1)?);
        Some(Self { device, point, kind, options })
    }

    /// A volume that no cluster shares (`tunefs.ocfs2 -M local`) has no other hosts. It has no heartbeat; with another
    /// cluster than OCFS2's own (`cluster_stack`), that one has it.
    fn keeps_locks_local(&self) -> bool {
        let has = |wanted: fn(&[u8]) -> bool| self.options.split(|byte| *byte == b',').any(wanted);
        let is_shared =
            !has(|option| option == b"heartbeat=none") || has(|option| option.starts_with(b"cluster_stack="));
        self.kind == b"ocfs2" && is_shared && has(|option| option == b"localflocks")
    }
}

fn lines(mounts: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    mounts.split(|byte| *byte == b'\n').filter_map(Mount::parse)
}

/// The mount point of the file system that contains `path`, which has no links. Nothing of the path is accessed.
pub fn mount_point_of(path: &Path) -> io::Result<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(deepest(&mounts, path).map_or_else(|| PathBuf::from("/"), |mount| mount.point))
}

/// Of several at one point, the last one is on top.
fn deepest<'a>(mounts: &'a [u8], path: &Path) -> Option<Mount<'a>> {
    let above = lines(mounts).filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
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

    const MOUNTS: &[u8] = b"\
        26 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        27 26 0:22 / /proc rw,nosuid - proc proc rw\n\
        41 26 8:17 / /OVS/Repositories/a rw,relatime shared:7 master:2 - ocfs2 /dev/sdb1 rw,_netdev,heartbeat=local,nointr,localflocks,,coherency=full\n\
        42 26 8:33 / /OVS/Repositories/b rw,relatime - ocfs2 /dev/sdc1 rw,_netdev,heartbeat=global\n\
        43 26 8:49 / /with\\040space rw - xfs /dev/sdd1 rw,localflocks\n\
        44 26 8:65 / /OVS/Repositories/alone rw - ocfs2 /dev/sde1 rw,heartbeat=none,nointr,localflocks,,coherency=full\n\
        45 26 8:81 / /OVS/Repositories/pcmk rw - ocfs2 /dev/sdf1 rw,heartbeat=none,localflocks,,cluster_stack=pcmk\n\
        short\n\
        46 26 8:97 / /no-dash rw,relatime ocfs2 /dev/sdg1 rw,localflocks\n";

    #[test]
    fn the_deepest_mount_above_a_path_is_its_mount_point() {
        let of = |path: &str| deepest(MOUNTS, Path::new(path)).unwrap().point;
        assert_eq!(of("/OVS/Repositories/a/VirtualDisks"), Path::new("/OVS/Repositories/a"));
        assert_eq!(of("/OVS/Repositories/a"), Path::new("/OVS/Repositories/a"));
        assert_eq!(of("/OVS/Repositories/ab"), Path::new("/"));
        assert_eq!(of("/with space/b"), Path::new("/with space"));
        assert!(deepest(b"", Path::new("/x")).is_none());
    }

    #[test]
    fn localflocks_counts_only_on_an_ocfs2_that_hosts_can_share() {
        let found = |mounts: &[u8]| -> Vec<String> {
            let local = lines(mounts).filter(Mount::keeps_locks_local);
            local.map(|mount| String::from_utf8(mount.device.to_vec()).unwrap()).collect()
        };
        assert_eq!(found(MOUNTS), ["8:17", "8:81"]);
        let at = |path: &str| deepest(MOUNTS, Path::new(path)).unwrap().keeps_locks_local();
        assert!(at("/OVS/Repositories/a/VirtualDisks") && !at("/OVS/Repositories/b") && !at("/"));
    }

    #[test]
    fn what_is_mounted_on_top_counts() {
        let mounts = b"\
            41 26 8:17 / /a rw - ocfs2 /dev/sdb1 rw,heartbeat=local,localflocks\n\
            42 41 8:33 / /a rw - ocfs2 /dev/sdc1 rw,heartbeat=local\n";
        assert!(!deepest(mounts, Path::new("/a/b")).unwrap().keeps_locks_local());
    }
}
