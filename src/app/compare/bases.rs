//! Which disk of the base a disk is compared to.

use super::options::MapOptions;
use crate::app::Error;
use crate::model::{SnapshotDisk, SnapshotPair};

/// The disk of the base that `disk` can be compared to, or why there is none.
pub(super) fn base_disk<'a>(pair: &SnapshotPair<'a>, disk: &SnapshotDisk) -> Result<&'a SnapshotDisk, &'static str> {
    let of_direction = |forward, back| Err(if pair.is_reversed() { back } else { forward });
    match pair.base().disk(&disk.name) {
        None => of_direction("the base has no such disk", "the newer snapshot has no such disk"),
        Some(base_disk) if base_disk.source != disk.source => of_direction(
            "the base's disk of this name is another disk",
            "the newer snapshot's disk of this name is another disk",
        ),
        Some(base_disk) => Ok(base_disk),
    }
}

/// Checks all disks of `pair` before any file is read, if the request refuses full maps.
///
/// # Errors
/// [`Error::FullRequired`].
pub(crate) fn check_bases(pair: &SnapshotPair<'_>, options: MapOptions) -> Result<(), Error> {
    for disk in pair.target().disks.iter().filter(|_| options.refuse_full) {
        base_disk(pair, disk).map_err(|reason| Error::FullRequired { disk: disk.name.to_string(), reason })?;
    }
    Ok(())
}
