//! The capabilities of this process: capabilities(7).

use caps::{CapSet, Capability, CapsHashSet};

/// Read, list and change files of any owner and mode: the disks may belong to any user.
const FILES: [Capability; 3] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH, Capability::CAP_FOWNER];

/// What the process keeps besides the capabilities for files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Listen at a port below 1024.
    pub low_port: bool,
    /// Give a file to any group.
    pub change_group: bool,
}

/// Drops all capabilities of the calling thread except those for files and those in `keep`. Threads and programs that
/// it starts later do not have them either.
///
/// # Errors
/// The kernel's, as text.
pub fn drop_others(keep: Keep) -> Result<(), String> {
    let mut wanted: CapsHashSet = FILES.into_iter().collect();
    wanted.extend(keep.low_port.then_some(Capability::CAP_NET_BIND_SERVICE));
    wanted.extend(keep.change_group.then_some(Capability::CAP_CHOWN));
    let owned = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    let kept: CapsHashSet = wanted.intersection(&owned).copied().collect();
    for capability in caps::all().difference(&kept) {
        // Needs CAP_SETPCAP, and an old kernel does not know the newest ones. The other sets are what counts.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    // Unknown before Linux 4.3.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).map_err(|error| error.to_string())?;
    caps::set(None, CapSet::Effective, &kept).map_err(|error| error.to_string())?;
    caps::set(None, CapSet::Permitted, &kept).map_err(|error| error.to_string())
}
