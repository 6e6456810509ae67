//! Runs one program of the directory.

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

use super::event::{CallReason, Event};
use super::leftover_processes::{self, Search, Selection};
use super::output::Output;
use super::process_env::{CALL_ENV, KILL_WAIT, SNAPSHOT_ENV};
use crate::model::{HookOutcome, HookStage};

/// The stream in which `quiesced` counts.
pub(super) const STDOUT: &str = "stdout";

pub(super) const STDERR: &str = "stderr";

/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long it takes at most to end a program with its leftover processes.
pub(super) const MAX_KILL_DURATION: Duration =
    TERM_GRACE.saturating_add(KILL_WAIT).saturating_add(leftover_processes::MAX_DURATION);

/// How long the output of an ended program is read: processes that it left behind may keep its streams open.
const OUTPUT_WAIT: Duration = Duration::from_millis(500);

/// A file that is open for writing cannot be run (`ETXTBSY`), so it is tried again.
const ATTEMPTS: u32 = 20;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct ProgramResult {
    pub outcome: HookOutcome,
    pub detail: String,
    /// What it printed, by stream.
    pub output: Vec<(&'static str, Output)>,
    /// The search for the processes that it left behind, if it was killed.
    pub search: Option<Search>,
}

impl ProgramResult {
    /// The result of a call that was not made.
    pub(super) fn failed(detail: String) -> Self {
        Self { outcome: HookOutcome::Failed, detail, output: Vec::new(), search: None }
    }

    /// Whether it printed a line `quiesced`.
    pub(super) fn quiesced(&self) -> bool {
        self.output.iter().any(|(stream, output)| *stream == STDOUT && output.says_quiesced())
    }
}

/// Runs `program`, in whose environment `id` identifies the call. It is killed with its whole process group at the
/// deadline, and if it is cancelled; if that was before, it is not started.
pub(super) async fn call(
    program: &Path,
    event: &Event,
    id: &str,
    reason: CallReason,
    deadline: Instant,
    cancel: &CancellationToken,
) -> ProgramResult {
    let is_late = (Instant::now() >= deadline).then_some("its time was over before");
    if let Some(obstacle) = cancel.is_cancelled().then_some("was cancelled before").or(is_late) {
        return ProgramResult::failed(format!("was not started: {obstacle}"));
    }
    let mut child = match spawn(program, event, id, reason.stage()).await {
        Ok(child) => child,
        Err(error) => {
            return ProgramResult::failed(format!("cannot be started: {}", with_remedy(&error)));
        }
    };
    let (out, err) = (Output::default(), Output::default());
    let mut streams = JoinSet::new();
    let message = event.message(reason);
    if let Some(mut stdin) = child.stdin.take() {
        // A program need not read it, so errors are ignored.
        streams.spawn(async move { drop(stdin.write_all(&message).await) });
    }
    if let Some(stdout) = child.stdout.take() {
        streams.spawn(out.clone().read(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        streams.spawn(err.clone().read(stderr));
    }
    let mut search = None;
    let (outcome, detail) = tokio::select! {
        status = child.wait() => exit(status),
        () = sleep_until(deadline) => end(&mut child, id, &mut search, HookOutcome::Timeout, "took too long").await,
        () = cancel.cancelled() => end(&mut child, id, &mut search, HookOutcome::Failed, "was cancelled").await,
    };
    let _ = timeout(OUTPUT_WAIT, async { while streams.join_next().await.is_some() {} }).await;
    ProgramResult { outcome, detail, output: vec![(STDOUT, out), (STDERR, err)], search }
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
        .env(SNAPSHOT_ENV, &event.snapshot_id)
        .env(CALL_ENV, id)
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
                sleep(ATTEMPT_PAUSE).await;
            }
            spawned => return spawned,
        }
    }
}

fn with_remedy(error: &io::Error) -> String {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => "it is not a program; a script starts with #! and its interpreter",
        Some(Errno::ENOENT) => "the interpreter in its first line does not exist",
        Some(Errno::EACCES) => "the service may not run it; is its file system mounted noexec?",
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}

fn exit(status: io::Result<ExitStatus>) -> (HookOutcome, String) {
    match status {
        // "exit status: 3", "signal: 9 (SIGKILL)"
        Ok(status) if status.success() => (HookOutcome::Ok, String::new()),
        Ok(status) => (HookOutcome::Failed, status.to_string()),
        Err(error) => (HookOutcome::Failed, format!("cannot be waited for: {error}")),
    }
}

/// Ends `child`, for this reason. If it has ended by itself just now, that counts, and what it left running is kept.
async fn end(
    child: &mut Child,
    id: &str,
    search: &mut Option<Search>,
    outcome: HookOutcome,
    reason: &str,
) -> (HookOutcome, String) {
    match child.try_wait() {
        Ok(Some(status)) => exit(Ok(status)),
        _ => (outcome, format!("{reason}, and {}", kill(child, id, search).await)),
    }
}

/// Kills `child` with its process group and the processes that it started in others. Returns what happened to it.
async fn kill(child: &mut Child, id: &str, search: &mut Option<Search>) -> &'static str {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else {
        return "was ended";
    };
    let _ = killpg(pid, Signal::SIGTERM);
    let end = Instant::now() + TERM_GRACE;
    // As long as it is not reaped, its pid is not used again.
    while Instant::now() < end && !has_ended(pid) {
        sleep(Duration::from_millis(10)).await;
    }
    // Processes in other groups first, while their ancestors can be found.
    *search = Some(leftover_processes::kill_on_thread(Selection::Call(id.to_owned())).await);
    let _ = killpg(pid, Signal::SIGKILL);
    match timeout(KILL_WAIT, child.wait()).await {
        Ok(_) => "was killed",
        Err(_) => "survives SIGKILL, since it hangs in the kernel",
    }
}

fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
}
