//! Programs that outlived the service that called them, or their own end.
//!
//! One that was about to freeze something may do so yet, after its `post` has thawed it. So it is ended
//! first, also where it runs in a process group of its own, as under timeout(1), setsid(1) or sudo(8).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::program::{MARK, STAGE};
use crate::model::HookStage;

/// How long they are waited for. One that hangs in the kernel dies when what it hangs on is thawed.
pub(super) const DEATH: Duration = Duration::from_secs(3);

/// Looks that have to find nothing, one after the other: a process that is being started has no environment
/// for a moment.
const QUIET: u32 = 3;

/// [`end`], on a thread of its own: those of a pool may all be waited for, and something is frozen.
pub(super) async fn end_on_a_thread(id: String, stage: Option<HookStage>) {
    let (done, ended) = tokio::sync::oneshot::channel::<()>();
    let work = move || {
        let killed = end(&id, stage);
        // Whoever waits goes on before the log is told.
        drop(done);
        if killed > 0 {
            tracing::warn!(processes = killed, snapshot = id, "what a hook has left was killed");
        }
    };
    match std::thread::Builder::new().name("orphans".to_owned()).spawn(work) {
        Ok(_) => drop(ended.await),
        Err(error) => tracing::error!(%error, "what hooks have left is not looked for"),
    }
}

/// Ends all processes that hooks of the snapshot `id` have left: those of one `stage`, or of both.
/// Says how many there were.
fn end(id: &str, stage: Option<HookStage>) -> usize {
    let until = Instant::now() + DEATH;
    let (mut killed, mut quiet) = (HashSet::new(), 0);
    loop {
        let left = find(id, stage);
        // First all are stopped: a shell whose child is killed before it would go on to the next line.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &left {
                let _ = kill(*pid, signal);
            }
        }
        killed.extend(left.iter().copied());
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET || Instant::now() > until {
            return killed.len();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes whose environment names the snapshot `id` and the `stage`, with all that they have started:
/// sudo(8) gives its children another environment.
fn find(id: &str, stage: Option<HookStage>) -> Vec<Pid> {
    let (mark, stage) = (format!("{MARK}={id}"), stage.map(|stage| format!("{STAGE}={}", stage.as_str())));
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |variable: &String| environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes());
        has(&mark) && stage.as_ref().is_none_or(has)
    };
    let mut found: HashSet<i32> = pids.iter().copied().filter(marked).collect();
    if found.is_empty() {
        return Vec::new();
    }
    let parents: HashMap<i32, i32> = pids.iter().filter_map(|pid| Some((*pid, parent(*pid)?))).collect();
    loop {
        let known = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == known {
            return found.into_iter().map(Pid::from_raw).collect();
        }
    }
}

/// The parent of a process that has not ended.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold some.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
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
        end(&id, None);
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(find(&other, None).len(), 1);
        others.kill().unwrap();
        others.wait().unwrap();
    }

    #[test]
    fn what_they_have_started_is_found_by_its_parents_and_by_the_stage() {
        let id = uuid::Uuid::new_v4().to_string();
        // As sudo(8): another environment, another session.
        let script = "setsid env -i sleep 601 & wait";
        let mut shell = Command::new("sh").args(["-c", script]).env(MARK, &id).env(STAGE, "pre").spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while find(&id, Some(HookStage::Pre)).len() < 2 {
            assert!(Instant::now() < until, "{:?}", find(&id, None));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(find(&id, Some(HookStage::Post)), []);
        let all = find(&id, None);
        end(&id, Some(HookStage::Pre));
        shell.wait().unwrap();
        while all.iter().any(|pid| parent(pid.as_raw()).is_some()) {
            assert!(Instant::now() < until, "one of {all:?} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
