//! Processes that a hook left behind: it was killed at its deadline, or the service was.
//!
//! A process that was about to freeze something may do so after the `post` hook has thawed it. So leftover processes
//! are killed first, including those in process groups of their own, as under timeout(1), setsid(1) or sudo(8).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::calls;
use super::pending::PendingPostHooks;
use super::process_env::{CALL_ENV, KILL_WAIT, SNAPSHOT_ENV};

/// Reading the environment of another process can hang in the kernel, so the search has a limit too.
const SEARCH_WAIT: Duration = Duration::from_secs(1);

/// How long a search takes at most.
pub(super) const MAX_DURATION: Duration = KILL_WAIT.saturating_add(SEARCH_WAIT);

/// Consecutive scans that have to find nothing: a process that is being started has no environment for a moment.
const SCANS: u32 = 3;

const SCAN_PAUSE: Duration = Duration::from_millis(20);

/// Which processes are killed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Selection {
    /// Those of one call.
    Call(String),
    /// Those of an operation's failed calls, and of the call that was running when the service was killed: the last
    /// one whose program still runs. If the program of a call has ended, the processes that it left are kept.
    Unfinished {
        call_prefix: String,
        /// The id that a call has which starts after the selection was made: a post hook, which must not be killed. Those
        /// from this one on are not selected.
        before: String,
        /// Ids of the successful calls.
        succeeded: Vec<String>,
        /// Ids of the failed calls.
        failed: Vec<String>,
    },
    /// All those of a snapshot, because an earlier version gave its calls no ids.
    Snapshot(String),
}

impl Selection {
    /// The processes that may still run for the pending hooks.
    pub(super) fn unfinished(pending: &PendingPostHooks) -> Self {
        if pending.call_prefix.is_empty() {
            return Self::Snapshot(pending.event.snapshot_id.clone());
        }
        let ids = |succeeded| {
            let calls = pending.finished.iter().filter(move |call| call.succeeded == succeeded);
            calls.map(|call| call.id.clone()).collect()
        };
        Self::Unfinished {
            call_prefix: pending.call_prefix.clone(),
            before: calls::next_id(&pending.call_prefix),
            succeeded: ids(true),
            failed: ids(false),
        }
    }

    /// The environment variables, with their values, that mark a process to be killed.
    fn marks(&self) -> Vec<String> {
        match self {
            Self::Call(id) => vec![format!("{CALL_ENV}={id}")],
            Self::Snapshot(id) => vec![format!("{SNAPSHOT_ENV}={id}")],
            Self::Unfinished { call_prefix, before, succeeded, failed } => {
                let prefix = format!("{CALL_ENV}={call_prefix}.");
                let mut last = None;
                for _ in 0..SCANS {
                    let seen = environments(&pids()).into_iter().filter_map(|(pid, environment)| {
                        let mark = environment.into_iter().find(|variable| variable.starts_with(&prefix))?;
                        Stat::of(pid)?.is_program().then_some(mark)
                    });
                    let is_unfinished = |mark: &String| {
                        let id = mark.strip_prefix(&format!("{CALL_ENV}=")).unwrap_or_default();
                        id < before.as_str() && !succeeded.iter().chain(failed).any(|finished| finished == id)
                    };
                    last = seen.filter(is_unfinished).chain(last).max();
                    std::thread::sleep(SCAN_PAUSE);
                }
                failed.iter().map(|id| format!("{CALL_ENV}={id}")).chain(last).collect()
            }
        }
    }
}

/// What a search has done. The launcher sends it to the service, which logs it.
#[must_use]
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Search {
    Killed {
        processes: usize,
        selection: Selection,
    },
    /// Why it could not start.
    NotStarted(String),
    TookTooLong,
}

impl Search {
    /// Logs it. False: processes may be left.
    pub(super) fn log(&self) -> bool {
        match self {
            Self::Killed { processes: 0, .. } => {}
            Self::Killed { processes, selection } => {
                tracing::warn!(processes, ?selection, "killed processes that a hook left behind");
            }
            Self::NotStarted(error) => tracing::error!(error, "cannot search for processes that hooks left behind"),
            Self::TookTooLong => tracing::error!(
                "the search for processes that hooks left behind took too long: they may still freeze something"
            ),
        }
        matches!(self, Self::Killed { .. })
    }
}

/// Kills the selected processes on a new thread, for which it waits a limited time: a guest may be frozen.
pub(super) async fn kill_on_thread(selection: Selection) -> Search {
    kill_until(selection, Instant::now() + MAX_DURATION).await
}

/// As [`kill_on_thread`], with this limit. A search that hangs kills nothing after it: by then, the hook may run that
/// thaws the guest.
pub(super) async fn kill_until(selection: Selection, limit: Instant) -> Search {
    let (done, ended) = tokio::sync::oneshot::channel();
    let work = move || {
        let processes = kill_marked(&selection.marks(), limit);
        let _ = done.send(Search::Killed { processes, selection });
    };
    if let Err(error) = std::thread::Builder::new().name("leftovers".to_owned()).spawn(work) {
        return Search::NotStarted(error.to_string());
    }
    match tokio::time::timeout_at(limit.into(), ended).await {
        Ok(Ok(search)) => search,
        // Its thread has panicked, which is logged.
        Ok(Err(error)) => Search::NotStarted(error.to_string()),
        Err(_) => Search::TookTooLong,
    }
}

/// Kills all processes with one of `marks`, none after `limit`, and returns how many there were.
fn kill_marked(marks: &[String], limit: Instant) -> usize {
    let deadline = Instant::now() + KILL_WAIT;
    let (mut killed, mut empty_scans) = (HashSet::new(), 0);
    while !marks.is_empty() {
        let found = find(marks);
        // Looking for them may have taken long.
        if Instant::now() >= limit {
            break;
        }
        // All are stopped first: a shell whose child dies would go on to its next line.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &found {
                let _ = kill(*pid, signal);
            }
        }
        killed.extend(found.iter().copied());
        empty_scans = if found.is_empty() { empty_scans + 1 } else { 0 };
        if empty_scans == SCANS || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(SCAN_PAUSE);
    }
    killed.len()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the variables in the environments of `pids` that name a call or a snapshot.
fn environments(pids: &[i32]) -> Vec<(i32, Vec<String>)> {
    let of = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let ours = |one: &&[u8]| one.starts_with(CALL_ENV.as_bytes()) || one.starts_with(SNAPSHOT_ENV.as_bytes());
        let text = |one: &[u8]| String::from_utf8_lossy(one).into_owned();
        Some((*pid, environment.split(|byte| *byte == 0).filter(ours).map(text).collect()))
    };
    pids.iter().filter_map(of).collect()
}

/// Returns the processes with one of `marks`, and all their descendants: sudo(8) clears the environment of its
/// children.
fn find(marks: &[String]) -> Vec<Pid> {
    let pids = pids();
    let marked = |(_, environment): &(i32, Vec<String>)| environment.iter().any(|one| marks.contains(one));
    let mut found: HashSet<i32> = environments(&pids).into_iter().filter(marked).map(|(pid, _)| pid).collect();
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

/// The state of a process that has not ended.
struct Stat {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses, and may contain some.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse().ok();
        let stat = Self { pid, parent: number()?, group: number()?, session: number()? };
        (!matches!(state, "Z" | "X")).then_some(stat)
    }

    /// Whether it can be the program of a call, which is started as the leader of a process group in the service's
    /// session. A daemon that it left behind either leads no group, or leads a session too.
    fn is_program(&self) -> bool {
        self.group == self.pid && self.session != self.pid
    }
}

/// The parent of a process that has not ended.
fn parent(pid: i32) -> Option<i32> {
    Stat::of(pid).map(|stat| stat.parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    fn call() -> String {
        calls::next_id(&uuid::Uuid::new_v4().to_string())
    }

    /// Starts the program of a call.
    fn sleeper(id: &str) -> std::process::Child {
        Command::new("sleep").arg("600").env(CALL_ENV, id).env(SNAPSHOT_ENV, "same").process_group(0).spawn().unwrap()
    }

    fn kill_now(selection: &Selection) {
        kill_marked(&selection.marks(), Instant::now() + MAX_DURATION);
    }

    /// The selection before the next call.
    fn unfinished(call_prefix: &str, succeeded: Vec<String>, failed: Vec<String>) -> Selection {
        let (call_prefix, before) = (call_prefix.to_owned(), calls::next_id(call_prefix));
        Selection::Unfinished { call_prefix, before, succeeded, failed }
    }

    fn count(id: &str) -> usize {
        find(&Selection::Call(id.to_owned()).marks()).len()
    }

    #[test]
    fn only_processes_of_the_call_are_killed() {
        let (id, other) = (call(), call());
        let (mut ours, mut others) = (sleeper(&id), sleeper(&other));
        // A zombie has no environment.
        kill_now(&Selection::Call(id));
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(count(&other), 1);
        others.kill().unwrap();
        others.wait().unwrap();
    }

    #[test]
    fn only_failed_calls_and_the_last_call_of_an_operation_are_killed() {
        let prefix = uuid::Uuid::new_v4().to_string();
        let ids: Vec<String> = (0..5).map(|_| calls::next_id(&prefix)).collect();
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        let mut sleepers: Vec<_> = ids.iter().map(|id| sleeper(id)).collect();
        let alive = |sleepers: &mut Vec<std::process::Child>| {
            sleepers.iter_mut().map(|sleeper| sleeper.try_wait().unwrap().is_none()).collect::<Vec<_>>()
        };
        // The first failed, the last succeeded, and nothing is recorded about those between.
        let selection = |succeeded: &[&String], failed: &[&String]| {
            let owned = |ids: &[&String]| ids.iter().copied().cloned().collect();
            unfinished(&prefix, owned(succeeded), owned(failed))
        };
        kill_now(&selection(&[&ids[4]], &[&ids[0]]));
        for dead in [0, 3] {
            sleepers[dead].wait().unwrap();
        }
        assert_eq!(alive(&mut sleepers), [false, true, true, false, true]);
        // After a crash nothing is recorded: only the last call is killed.
        kill_now(&selection(&[], &[]));
        sleepers[4].wait().unwrap();
        assert_eq!(alive(&mut sleepers), [false, true, true, false, false]);
        kill_now(&selection(&[&ids[1], &ids[2]], &[]));
        assert_eq!(alive(&mut sleepers), [false, true, true, false, false]);
        for sleeper in &mut sleepers {
            let _ = sleeper.kill();
            sleeper.wait().unwrap();
        }
    }

    #[test]
    fn a_call_whose_program_has_ended_is_finished() {
        let prefix = uuid::Uuid::new_v4().to_string();
        let (id, last) = (calls::next_id(&prefix), calls::next_id(&prefix));
        let mut program = sleeper(&id);
        // The last call leaves one process in the group of its ended program, and one with a session of its own.
        let script = "sleep 602 & setsid sleep 602 & exit";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).env(CALL_ENV, &last).process_group(0).spawn().unwrap().wait().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while count(&last) < 2 {
            assert!(Instant::now() < until, "{}", count(&last));
            std::thread::sleep(Duration::from_millis(10));
        }
        let selection = || unfinished(&prefix, Vec::new(), Vec::new());
        // The call before it still runs.
        kill_now(&selection());
        assert_eq!(program.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!((selection().marks().len(), count(&last)), (0, 2));
        kill_now(&Selection::Call(last));
    }

    #[test]
    fn late_search_spares_the_hook_that_thaws_the_guest() {
        let prefix = uuid::Uuid::new_v4().to_string();
        let interrupted = calls::next_id(&prefix);
        let selection = unfinished(&prefix, Vec::new(), Vec::new());
        // The search hung, and the post hook was called meanwhile.
        let post = calls::next_id(&prefix);
        let (mut interrupted_program, mut thawing) = (sleeper(&interrupted), sleeper(&post));
        // After the limit it kills nothing.
        for late in [&selection, &Selection::Call(post.clone())] {
            assert_eq!(kill_marked(&late.marks(), Instant::now()), 0);
        }
        assert_eq!((count(&interrupted), count(&post)), (1, 1));
        kill_now(&selection);
        assert_eq!(interrupted_program.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(count(&post), 1, "the post hook was killed");
        kill_now(&Selection::Call(post));
        thawing.wait().unwrap();
    }

    #[test]
    fn descendants_with_another_environment_are_killed() {
        let id = call();
        // As sudo(8) does: another environment, another session.
        let script = "setsid env -i sleep 601 & wait";
        let mut shell = Command::new("sh").args(["-c", script]).env(CALL_ENV, &id).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while count(&id) < 2 {
            assert!(Instant::now() < until, "{}", count(&id));
            std::thread::sleep(Duration::from_millis(10));
        }
        let all = find(&Selection::Call(id.clone()).marks());
        kill_now(&Selection::Call(id));
        shell.wait().unwrap();
        while all.iter().any(|pid| parent(pid.as_raw()).is_some()) {
            assert!(Instant::now() < until, "one of {all:?} is still alive");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
