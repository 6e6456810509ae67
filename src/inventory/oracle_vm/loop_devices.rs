//! Which disks the guests of this host have open.
//!
//! Xen's backend reads and writes a `file:` disk through a loop device of the host on which the guest runs. The kernel
//! tells the file of each. It is asked because xenstored, which knows all domains, would let a service that can ask it
//! change them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Also in the rules of the confinement.
pub const DEVICES: &str = "/sys/devices/virtual/block";

/// The files of all loop devices of this host. A file that cannot be read is left out.
pub fn files() -> HashSet<String> {
    files_of(Path::new(DEVICES))
}

fn files_of(devices: &Path) -> HashSet<String> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let loops = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"loop"));
    // It is missing for a device that is not in use.
    let files = loops.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    files.map(|file| file.trim_end_matches('\n').to_owned()).filter(|file| !file.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loop_devices_in_use_have_a_file() {
        let dir = tempfile::tempdir().unwrap();
        for (device, file) in
            [("loop0", Some("/a b.img\n")), ("loop1", None), ("loop12", Some("/c\n")), ("ram0", Some("/d"))]
        {
            let folder = dir.path().join(device).join("loop");
            fs::create_dir_all(&folder).unwrap();
            file.into_iter().for_each(|file| fs::write(folder.join("backing_file"), file).unwrap());
        }
        assert_eq!(files_of(dir.path()), ["/a b.img", "/c"].map(str::to_owned).into());
        assert_eq!(files_of(&dir.path().join("missing")), HashSet::new());
    }
}
