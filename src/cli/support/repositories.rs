//! The repositories: their file systems, and the extents of their largest disks. A clone takes time for each extent.

use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bounded::{Item, program_within};
use super::isolated::{Part, isolated};
use crate::config::Config;
use crate::inventory::ovs_agent;
use crate::repository::clone::Source;
use crate::sys::{fsinfo, mounts};

/// Disks of a repository.
const LARGEST: usize = 20;

/// Entries of the folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// How long one repository may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Shorter than [`TIMEOUT`]: it looks at all mounts, so it hangs if any of them does.
const XFS_INFO_TIMEOUT: Duration = Duration::from_secs(4);

/// The folder of the disks in a repository.
const DISKS: &str = "VirtualDisks";

/// An item for each repository.
pub fn items(config: &Config) -> Vec<Item> {
    let mut paths: Vec<PathBuf> = config.repositories.paths.iter().map(|(_, path)| path.clone()).collect();
    if let Some(agent) = &config.repositories.agent_db {
        let listed = ovs_agent::repositories(agent, false).unwrap_or_default();
        paths.extend(listed.into_iter().filter_map(|entry| entry.mount_point));
    }
    paths.sort();
    paths.dedup();
    let item = |(number, path): (usize, &PathBuf)| {
        let what = format!("the file system of {}, and extents of its {LARGEST} largest disks", path.display());
        Item::new(format!("repository-{}.txt", number + 1), what, isolated(Part::Repository, path, TIMEOUT))
    };
    paths.iter().enumerate().map(item).collect()
}

/// The text about the repository at `path`.
///
/// # Errors
/// It cannot be opened.
pub fn examine(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.canonicalize()?;
    let folder = File::open(&path)?;
    let (name, space) = (fsinfo::name_of(&folder)?, fsinfo::space(&folder)?);
    let mount_point = mounts::mount_point_of(&path)?;
    let mut text = format!("{name} at {mount_point:?}, {} bytes, {} of them free\n", space.total, space.free);
    text += &extents(&path.join(DISKS)).unwrap_or_else(|error| format!("{DISKS}: {error}\n"));
    if name == "xfs" {
        // It wants the mount point.
        let geometry = program_within(XFS_INFO_TIMEOUT, &["xfs_info", &mount_point.to_string_lossy()]);
        text += &geometry.map_or_else(|error| error + "\n", |geometry| String::from_utf8_lossy(&geometry).into_owned());
    }
    Ok(text.into_bytes())
}

fn extents(folder: &Path) -> io::Result<String> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        // Of the entry itself: links are not followed.
        let found = entry.metadata()?;
        if found.is_file() {
            disks.push((found.len(), entry.file_name()));
        }
    }
    disks.sort_by(|(one, _), (other, _)| other.cmp(one));
    let mut text = format!("{} disks\n", disks.len());
    for (size, name) in disks.into_iter().take(LARGEST) {
        let extents = open(&folder.join(&name)).and_then(|file| Source::extent_count(&file));
        let extents = extents.map_or_else(|error| error.to_string(), |extents| extents.to_string());
        let _ = writeln!(text, "{extents} extents, {size} bytes: {name:?}");
    }
    Ok(text)
}

/// A special file that has replaced a disk must not block.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}
