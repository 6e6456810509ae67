//! One program of the directory, called: arguments, standard input, a deadline, an end.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::leftover_processes;
use super::output::Output;
use crate::model::{HookOutcome, HookStage};

/// The variable with the id of the call: it tells the processes of one call from all others.
pub(super) const CALL: &str = "EXPORTER_CALL";

/// The variable with the id of the snapshot.
pub(super) const SNAPSHOT: &str = "EXPORTER_SNAPSHOT";

/// The stream that is looked at.
const STDOUT: &str = "stdout";

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long a killed program is waited for. One that hangs in the kernel, on a file system that it
/// has frozen itself, dies when that is thawed.
const KILL_WAIT: Duration = Duration::from_secs(3);

/// All of it, with the end of what it has left.
pub(super) const LONGEST_END: Duration = GRACE
    .saturating_add(KILL_WAIT)
    .saturating_add(leftover_processes::KILL_WAIT)
    .saturating_add(leftover_processes::SEARCH);

/// How long the rest of what an ended program has printed is waited for: a process that it left
/// behind may hold its streams open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A file that is open for writing cannot be run (`ETXTBSY`): how often it is tried, and the pause.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// How a call ended.
pub(super) struct Ended {
    pub outcome: HookOutcome,
    pub detail: String,
    /// What it printed, by stream.
    pub said: Vec<(&'static str, Output)>,
}

impl Ended {
    /// Whether it printed a line `quiesced`.
    pub(super) fn quiesced(&self) -> bool {
        self.said.iter().any(|(stream, output)| *stream == STDOUT && output.says_quiesced())
    }
}

/// Calls `program` for one half of `event`, with `message` on its standard input; `id` is that of the call. It is
/// killed, with its whole process group, at the `deadline`, or when the service stops.
pub(super) async fn call(
    program: &Path,
    event: &Event,
    id: &str,
    stage: HookStage,
    message: Vec<u8>,
    deadline: Instant,
    cancel_pre_hooks: &CancellationToken,
) -> Ended {
    let mut child = match spawn(program, event, id, stage).await {
        Ok(child) => child,
        Err(error) => {
            let detail = format!("cannot be started: {}", explained(&error));
            return Ended { outcome: HookOutcome::Failed, detail, said: Vec::new() };
        }
    };
    let (out, err) = (Output::default(), Output::default());
    let mut talk = JoinSet::new();
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read it is none the worse for it: the error is no news.
        talk.spawn(async move { drop(stdin.write_all(&message).await) });
    }
    if let Some(stdout) = child.stdout.take() {
        talk.spawn(out.clone().read(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        talk.spawn(err.clone().read(stderr));
    }
    let (outcome, detail) = tokio::select! {
        status = child.wait() => ended(status),
        () = sleep_until(deadline) => {
            (HookOutcome::Timeout, format!("took too long, and {}", kill(&mut child, id).await))
        }
        () = cancel_pre_hooks.cancelled() => {
            (HookOutcome::Failed, format!("the service stops; it {}", kill(&mut child, id).await))
        }
    };
    let _ = timeout(LAST_WORDS, async { while talk.join_next().await.is_some() {} }).await;
    Ended { outcome, detail, said: vec![(STDOUT, out), ("stderr", err)] }
}

async fn spawn(program: &Path, event: &Event, id: &str, stage: HookStage) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .args([event.operation.as_str(), stage.as_str()])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("EXPORTER_OPERATION", event.operation.as_str())
        .env("EXPORTER_STAGE", stage.as_str())
        .env("EXPORTER_VM", &event.vm.name)
        .env(SNAPSHOT, &event.snapshot_id)
        .env(CALL, id)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut attempt = 1;
    loop {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(Errno::ETXTBSY as i32) && attempt < ATTEMPTS => {
                attempt += 1;
                sleep(PAUSE).await;
            }
            spawned => return spawned,
        }
    }
}

fn explained(error: &io::Error) -> String {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => "it is no program; a script starts with #! and its interpreter",
        Some(Errno::ENOENT) => "the interpreter that its first line names is not there",
        Some(Errno::EACCES) => "the service may not run it; is its file system mounted noexec?",
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}

fn ended(status: io::Result<ExitStatus>) -> (HookOutcome, String) {
    match status {
        // "exit status: 3", "signal: 9 (SIGKILL)"
        Ok(status) if status.success() => (HookOutcome::Ok, String::new()),
        Ok(status) => (HookOutcome::Failed, status.to_string()),
        Err(error) => (HookOutcome::Failed, format!("cannot be waited for: {error}")),
    }
}

/// Ends `child`, all of its process group, and all that it has started in others; says how.
async fn kill(child: &mut Child, id: &str) -> &'static str {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else {
        return "was ended";
    };
    let _ = killpg(pid, Signal::SIGTERM);
    let end = Instant::now() + GRACE;
    // Looked at and not collected: until it is, its number is nobody else's.
    while Instant::now() < end && !has_ended(pid) {
        sleep(Duration::from_millis(10)).await;
    }
    // First those in groups of their own, while it can be told whose they are.
    leftover_processes::end_on_a_thread(leftover_processes::Which::Call(id.to_owned())).await;
    let _ = killpg(pid, Signal::SIGKILL);
    match timeout(KILL_WAIT, child.wait()).await {
        Ok(_) => "was killed",
        Err(_) => "does not die of SIGKILL: it hangs in the kernel",
    }
}

fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
}
