//! The number of extents of the largest disks: a clone takes time for each.

use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bounded::{Item, program, within};
use crate::config::Config;
use crate::inventory::ovs_agent;
use crate::repository::clone::Source;

/// Disks of a repository.
const LARGEST: usize = 20;

/// Entries of the folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// How long the disks of one repository may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The folder of the disks in a repository.
const DISKS: &str = "VirtualDisks";

/// For each repository an item about its disks, and one about its file system.
pub fn items(config: &Config) -> Vec<Item> {
    let mut mount_points: Vec<PathBuf> = config.repositories.paths.iter().map(|(_, path)| path.clone()).collect();
    if let Some(agent) = &config.repositories.agent_db {
        let listed = ovs_agent::repositories(agent, false).unwrap_or_default();
        mount_points.extend(listed.into_iter().filter_map(|entry| entry.mount_point));
    }
    mount_points.sort();
    mount_points.dedup();
    let mut items = Vec::new();
    for (number, mount_point) in mount_points.into_iter().enumerate() {
        let (shown, folder) = (mount_point.display().to_string(), mount_point.join(DISKS));
        let counted = within(TIMEOUT, move || count(&folder));
        let what = format!("extents of the {LARGEST} largest disks of {shown}");
        let hangs = counted.as_ref().is_err_and(|error| error.contains("longer than"));
        items.push(Item::new(format!("extents-{}.txt", number + 1), what, counted));
        let geometry = if hangs { Err("the repository does not respond".to_owned()) } else { xfs_info(&shown) };
        items.push(Item::new(format!("xfs-info-{}.txt", number + 1), format!("the file system of {shown}"), geometry));
    }
    items
}

fn xfs_info(mount_point: &str) -> Result<Vec<u8>, String> {
    program(&["xfs_info", mount_point])
}

fn count(folder: &Path) -> io::Result<Vec<u8>> {
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
    Ok(text.into_bytes())
}

/// A special file that has replaced a disk must not block.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}
