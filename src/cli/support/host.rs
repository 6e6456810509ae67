//! The host: versions, mounts, limits of the service's process, its unit and the end of its log.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use super::bounded::{Item, file, program, within};
use super::isolated::{Part, isolated};
use crate::config::Config;

/// Bytes of the log.
const LOG_END: u64 = 4 << 20;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The name of the example unit.
const UNIT: &str = "coriolis-ovm-exporter.service";

/// The properties that have no texts of the unit in which a secret could be, such as Environment.
const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,SubState,StatusText,Result,ExecMainStatus,ExecMainCode,NRestarts,\
    ActiveEnterTimestamp,FragmentPath,DropInPaths,Type,WatchdogUSec,WatchdogTimestamp,TimeoutStartUSec,TimeoutStopUSec,\
    MemoryCurrent,MemoryPeak,MemoryMax,TasksCurrent,TasksMax,LimitNOFILE,UMask,ProtectSystem,ReadWritePaths,ReadOnlyPaths";

pub fn items(config: Option<&Config>, socket: Option<&Path>) -> Vec<Item> {
    let version = format!("coriolis-ovm-exporter {}\n", env!("CARGO_PKG_VERSION"));
    let versions = [file("/proc/version"), file("/etc/os-release"), program(&["systemctl", "--version"])];
    let mut known = version.into_bytes();
    for found in versions {
        known.extend(found.unwrap_or_else(|missing| missing.into_bytes()));
        known.push(b'\n');
    }
    let mut items = vec![
        Item::new("versions.txt", "this program, the kernel and the system", Ok(known)),
        Item::new("mounts.txt", "what is mounted", file("/proc/self/mountinfo")),
        Item::new("memory.txt", "the memory of the host", file("/proc/meminfo")),
        Item::new("pressure-io.txt", "how long tasks wait for disks", file("/proc/pressure/io")),
        Item::new("systemd.txt", "the unit", program(&["systemctl", "show", "--no-pager", PROPERTIES, UNIT])),
        Item::new("log.txt", "the end of the log", log(config)),
    ];
    let process = process(socket);
    for (name, what) in [("limits", "limits of the service's process"), ("status", "its memory and threads")] {
        let found = process.clone().and_then(|pid| file(&format!("/proc/{pid}/{name}")));
        items.push(Item::new(format!("process-{name}.txt"), what, found));
    }
    items
}

/// The process that listens at the socket.
fn process(socket: Option<&Path>) -> Result<i32, String> {
    let Some(socket) = socket.map(Path::to_owned) else { return Err("api.socket is \"\"".to_owned()) };
    within(TIMEOUT, move || {
        let stream = UnixStream::connect(socket)?;
        Ok(getsockopt(&stream, sockopt::PeerCredentials)?.pid())
    })
}

fn log(config: Option<&Config>) -> Result<Vec<u8>, String> {
    match config.and_then(|config| config.log.file.as_ref()) {
        Some(path) => isolated(Part::Log, path, TIMEOUT),
        None => program(&["journalctl", "--unit", UNIT, "--lines", "10000", "--no-pager", "--output", "short-iso"]),
    }
}

/// The end of the log file at `path`.
///
/// # Errors
/// It cannot be read.
pub fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
    let mut text = Vec::new();
    file.take(LOG_END).read_to_end(&mut text)?;
    Ok(text)
}
