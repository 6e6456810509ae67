//! Programs that outlived the service that called them.
//!
//! One that was about to freeze something when the service was killed may do so yet, after the owed
//! `post` has thawed it. So it is ended first.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::program::MARK;

/// How long they are waited for. One that hangs in the kernel dies when what it hangs on is thawed.
const DEATH: Duration = Duration::from_secs(3);

/// Ends all processes that hooks of the snapshot `id` have left. This waits, and is for the start.
pub(super) fn end(id: &str) {
    let until = Instant::now() + DEATH;
    loop {
        let left = find(id);
        if left.is_empty() || Instant::now() > until {
            break;
        }
        for pid in left {
            tracing::warn!(%pid, snapshot = id, "a hook of an earlier life of the service still runs: it is killed");
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The processes whose environment names the snapshot `id`.
fn find(id: &str) -> Vec<Pid> {
    let mark = format!("{MARK}={id}");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(marked).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn only_those_of_the_snapshot_are_ended() {
        let (id, other) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let sleeper = |id: &str| Command::new("sleep").arg("600").env(MARK, id).spawn().unwrap();
        let (mut ours, mut others) = (sleeper(&id), sleeper(&other));
        // One that is dead and not collected has no environment.
        end(&id);
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(find(&other).len(), 1);
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
