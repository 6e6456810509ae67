//! Programs that outlived the service that called them, or their own end.
//!
//! One that was about to freeze something may do so yet, after its `post` has thawed it. So it is ended
//! first, also where it runs in a process group of its own, as under timeout(1), setsid(1) or sudo(8).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::pending::PendingPostHooks;
use super::program::{CALL, SNAPSHOT};

/// How long they are waited for. One that hangs in the kernel dies when what it hangs on is thawed.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(3);

/// How long the search is waited for besides: reading another process's environment can hang in the kernel too.
pub(super) const SEARCH: Duration = Duration::from_secs(1);

/// Looks that have to find nothing, one after the other: a process that is being started has no environment
/// for a moment.
const QUIET: u32 = 3;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Which processes are to be ended.
#[derive(Clone, Debug)]
pub(super) enum Which {
    /// Those of one call.
    Call(String),
    /// Those of an operation's calls that failed, and of the call that was under way when the service was killed:
    /// the last one whose program itself still runs. A call whose program has ended was over, and what it left
    /// running stays.
    Unfinished {
        /// With what the ids of its calls begin.
        operation: String,
        /// Ids of the calls that ended well.
        well: Vec<String>,
        /// Ids of the calls that failed.
        failed: Vec<String>,
    },
    /// All those of a snapshot: an earlier version gave its calls no ids.
    Snapshot(String),
}

impl Which {
    /// Those that may be at work still for what is written down in `debt`.
    pub(super) fn unfinished(debt: &PendingPostHooks) -> Self {
        if debt.id.is_empty() {
            return Self::Snapshot(debt.event.snapshot_id.clone());
        }
        let ids = |well| debt.past.iter().filter(move |call| call.well == well).map(|call| call.id.clone()).collect();
        Self::Unfinished { operation: debt.id.clone(), well: ids(true), failed: ids(false) }
    }

    /// The variables, as they stand in an environment, of which one marks a process to be ended.
    fn marks(&self) -> Vec<String> {
        match self {
            Self::Call(id) => vec![format!("{CALL}={id}")],
            Self::Snapshot(id) => vec![format!("{SNAPSHOT}={id}")],
            Self::Unfinished { operation, well, failed } => {
                let begin = format!("{CALL}={operation}.");
                let mut last = None;
                for _ in 0..QUIET {
                    let seen = environments(&pids()).into_iter().filter_map(|(pid, environment)| {
                        let mark = environment.into_iter().find(|variable| variable.starts_with(&begin))?;
                        Stat::of(pid)?.is_program().then_some(mark)
                    });
                    let is_past = |mark: &String| {
                        let id = mark.strip_prefix(&format!("{CALL}=")).unwrap_or_default();
                        well.iter().chain(failed).any(|past| past == id)
                    };
                    last = seen.filter(|mark| !is_past(mark)).chain(last).max();
                    std::thread::sleep(PAUSE);
                }
                failed.iter().map(|id| format!("{CALL}={id}")).chain(last).collect()
            }
        }
    }
}

/// Ends all processes of `which`, on a thread of its own that is waited for with an end: something is frozen.
pub(super) async fn end_on_a_thread(which: Which) {
    let (done, ended) = tokio::sync::oneshot::channel();
    let work = move || {
        let killed = end(&which.marks());
        if killed > 0 {
            tracing::warn!(processes = killed, ?which, "what a hook has left was killed");
        }
        let _ = done.send(());
    };
    let started = std::thread::Builder::new().name("orphans".to_owned()).spawn(work);
    if let Err(error) = started {
        return tracing::error!(%error, "what hooks have left is not looked for");
    }
    if tokio::time::timeout(KILL_WAIT + SEARCH, ended).await.is_err() {
        tracing::error!("what hooks have left could not be looked for in time: it may freeze something yet");
    }
}

/// Ends all processes that one of `marks` marks. Says how many there were.
fn end(marks: &[String]) -> usize {
    let until = Instant::now() + KILL_WAIT;
    let (mut killed, mut quiet) = (HashSet::new(), 0);
    while !marks.is_empty() {
        let left = find(marks);
        // First all are stopped: a shell whose child is killed before it would go on to the next line.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &left {
                let _ = kill(*pid, signal);
            }
        }
        killed.extend(left.iter().copied());
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET || Instant::now() > until {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    killed.len()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What stands in the environments of `pids`, of each what names a call or a snapshot.
fn environments(pids: &[i32]) -> Vec<(i32, Vec<String>)> {
    let of = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let ours = |one: &&[u8]| one.starts_with(CALL.as_bytes()) || one.starts_with(SNAPSHOT.as_bytes());
        let text = |one: &[u8]| String::from_utf8_lossy(one).into_owned();
        Some((*pid, environment.split(|byte| *byte == 0).filter(ours).map(text).collect()))
    };
    pids.iter().filter_map(of).collect()
}

/// The processes that one of `marks` marks, with all that they have started: sudo(8) gives its children another
/// environment.
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

/// What the kernel says of a process that has not ended.
struct Stat {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses, and may hold some.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse().ok();
        let stat = Self { pid, parent: number()?, group: number()?, session: number()? };
        (!matches!(state, "Z" | "X")).then_some(stat)
    }

    /// Whether it can be the program of a call: that is started as the leader of a process group, in the service's
    /// session. A daemon that it has left leads no group, or a session of its own, which a group's leader cannot
    /// begin.
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
        super::super::calls::next_id(&uuid::Uuid::new_v4().to_string())
    }

    /// The program of a call, as it is started.
    fn sleeper(id: &str) -> std::process::Child {
        Command::new("sleep").arg("600").env(CALL, id).env(SNAPSHOT, "same").process_group(0).spawn().unwrap()
    }

    fn count(id: &str) -> usize {
        find(&Which::Call(id.to_owned()).marks()).len()
    }

    #[test]
    fn only_those_of_the_call_are_ended() {
        let (id, other) = (call(), call());
        let (mut ours, mut others) = (sleeper(&id), sleeper(&other));
        // One that is dead and not collected has no environment.
        end(&Which::Call(id).marks());
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(count(&other), 1);
        others.kill().unwrap();
        others.wait().unwrap();
    }

    #[test]
    fn of_an_operation_only_failed_calls_and_the_last_one_are_ended() {
        let operation = uuid::Uuid::new_v4().to_string();
        let ids: Vec<String> = (0..5).map(|_| super::super::calls::next_id(&operation)).collect();
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        let mut sleepers: Vec<_> = ids.iter().map(|id| sleeper(id)).collect();
        let alive = |sleepers: &mut Vec<std::process::Child>| {
            sleepers.iter_mut().map(|sleeper| sleeper.try_wait().unwrap().is_none()).collect::<Vec<_>>()
        };
        // The first failed, the last is known to have ended well, and nothing is known of those between.
        let which = |well: &[&String], failed: &[&String]| {
            let owned = |ids: &[&String]| ids.iter().copied().cloned().collect();
            Which::Unfinished { operation: operation.clone(), well: owned(well), failed: owned(failed) }
        };
        end(&which(&[&ids[4]], &[&ids[0]]).marks());
        for dead in [0, 3] {
            sleepers[dead].wait().unwrap();
        }
        assert_eq!(alive(&mut sleepers), [false, true, true, false, true]);
        // After a crash, with nothing recorded: the last one.
        end(&which(&[], &[]).marks());
        sleepers[4].wait().unwrap();
        assert_eq!(alive(&mut sleepers), [false, true, true, false, false]);
        end(&which(&[&ids[1], &ids[2]], &[]).marks());
        assert_eq!(alive(&mut sleepers), [false, true, true, false, false]);
        for sleeper in &mut sleepers {
            let _ = sleeper.kill();
            sleeper.wait().unwrap();
        }
    }

    #[test]
    fn a_call_whose_program_has_ended_is_not_under_way() {
        let operation = uuid::Uuid::new_v4().to_string();
        let (id, last) = (super::super::calls::next_id(&operation), super::super::calls::next_id(&operation));
        let mut program = sleeper(&id);
        // Left by the last call: in the group of a program that has ended, and with a session of its own.
        let script = "sleep 602 & setsid sleep 602 & exit";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).env(CALL, &last).process_group(0).spawn().unwrap().wait().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while count(&last) < 2 {
            assert!(Instant::now() < until, "{}", count(&last));
            std::thread::sleep(Duration::from_millis(10));
        }
        let which = || Which::Unfinished { operation: operation.clone(), well: Vec::new(), failed: Vec::new() };
        // The call before it is under way still.
        end(&which().marks());
        assert_eq!(program.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!((which().marks().len(), count(&last)), (0, 2));
        end(&Which::Call(last).marks());
    }

    #[test]
    fn what_they_have_started_is_found_by_its_parents() {
        let id = call();
        // As sudo(8): another environment, another session.
        let script = "setsid env -i sleep 601 & wait";
        let mut shell = Command::new("sh").args(["-c", script]).env(CALL, &id).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while count(&id) < 2 {
            assert!(Instant::now() < until, "{}", count(&id));
            std::thread::sleep(Duration::from_millis(10));
        }
        let all = find(&Which::Call(id.clone()).marks());
        end(&Which::Call(id).marks());
        shell.wait().unwrap();
        while all.iter().any(|pid| parent(pid.as_raw()).is_some()) {
            assert!(Instant::now() < until, "one of {all:?} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
