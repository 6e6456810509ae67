//! After an operation: post hooks thaw what may be frozen.

use std::ffi::OsStr;
use std::path::PathBuf;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calls::{Calls, FinishedCall, not_made};
use super::event::{CallReason, Operation, SyncTarget};
use super::leftover_processes::Selection;
use super::pending::{PendingHooks, PendingPostHooks};
use super::pre::{CalledProgram, PreResult};
use super::sync::Reached;
use super::{Hooks, ask, call, directory};
use crate::config::PostOrder;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};

/// The detail of a program that is not called.
const PROGRAM_NOT_CALLED: &str = "not called: post_on_failure is false, and its pre did not print \"quiesced\"";

/// The detail of a server that is not called.
const SERVER_NOT_CALLED: &str = "not called: post_on_failure is false for hooks.sync";

/// The result of the post hooks.
#[derive(Debug, Default)]
pub struct PostResult {
    /// All calls in their order, including those of pre hooks.
    pub runs: Vec<HookRun>,
    /// Hooks that have failed and have to be called again. `None` if they are unknown.
    pub failed: Option<PendingHooks>,
    /// Calls of programs that have ended.
    pub finished: Vec<FinishedCall>,
    /// Whether a hook has quiesced the guest's disks, and kept them so until they were cloned.
    pub quiesced: bool,
    /// Hooks whose pre hook was called and whose post hook was not, as configured.
    pub not_called: Vec<String>,
}

impl Hooks {
    /// Calls the post hooks that the pre hooks require: the programs, then the guest's server.
    pub async fn call_post(&self, pending: &PendingPostHooks, pre: PreResult, succeeded: bool) -> PostResult {
        let PreResult { mut calls, mut quiesced, programs, server, synced, .. } = pre;
        let needs_post = |program: &CalledProgram| {
            succeeded || self.config.post_on_failure || program.quiesced || program.pending_earlier
        };
        let server_needs_post = server && (succeeded || self.calls_servers_after_failure());
        let to_call = programs.iter().filter(|program| needs_post(program)).map(|program| program.name.clone());
        let to_call = PendingHooks { programs: to_call.collect(), server: server_needs_post };
        let first_post = calls.runs.len();
        let failed = self.call_all_post(pending, &to_call, succeeded, &mut calls).await;
        // If the thaw failed, the freeze may have ended before the disks were cloned.
        let claimed_quiesced = |run: &HookRun| match run.kind {
            HookKind::Directory => programs.iter().any(|one| one.quiesced && one.name.to_string_lossy() == run.name),
            HookKind::Sync => synced,
        };
        let is_made = succeeded && pending.event.operation == Operation::SnapshotCreate;
        let posts = calls.runs[first_post..].iter_mut();
        for run in posts.filter(|run| is_made && run.has_failed() && claimed_quiesced(run)) {
            run.deny_quiesced();
            quiesced = false;
        }
        let mut not_called = Vec::new();
        for program in programs.iter().filter(|program| !needs_post(program)) {
            let name = program.name.to_string_lossy();
            not_called.push(name.to_string());
            let call = not_made(name, HookKind::Directory, HookStage::Post, HookOutcome::Skipped, PROGRAM_NOT_CALLED);
            calls.push(&pending.event, call);
        }
        if let (true, Some(SyncTarget::Url(url))) = (server && !server_needs_post, &pending.event.sync) {
            not_called.push(url.clone());
            let call = not_made(url, HookKind::Sync, HookStage::Post, HookOutcome::Skipped, SERVER_NOT_CALLED);
            calls.push(&pending.event, call);
        }
        PostResult { runs: calls.runs, failed: Some(failed), finished: calls.finished, quiesced, not_called }
    }

    /// Calls post hooks that have failed before, or that were pending when the service stopped. Leftover processes of
    /// failed or interrupted calls are killed first, because they might still freeze something.
    pub async fn call_pending(&self, pending: &PendingPostHooks) -> PostResult {
        let mut calls = Calls { runs: Vec::new(), finished: pending.finished.clone() };
        if self.launcher.kill_leftovers(Selection::unfinished(pending)).await {
            // Nothing is left of the failed calls. So the list does not grow with each attempt.
            calls.finished.retain(|call| call.succeeded);
        }
        let known = pending.hooks.clone().or_else(|| self.all_hooks(&pending.event));
        let mut to_call = known.clone().unwrap_or(PendingHooks { programs: Vec::new(), server: true });
        for name in &pending.earlier {
            if !to_call.programs.contains(name) {
                to_call.programs.push(name.clone());
            }
        }
        let mut failed = Some(self.call_all_post(pending, &to_call, pending.succeeded, &mut calls).await);
        if let (None, Some(directory)) = (known, &self.config.directory) {
            let reason = "cannot be read, so its pending post hooks are unknown";
            let (name, kind) = (directory.display().to_string(), HookKind::Directory);
            calls.push(&pending.event, not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason));
            failed = None;
        }
        PostResult { runs: calls.runs, failed, finished: calls.finished, quiesced: false, not_called: Vec::new() }
    }

    fn calls_servers_after_failure(&self) -> bool {
        self.config.sync.as_ref().is_some_and(|sync| sync.post_on_failure)
    }

    /// Calls all hooks of `to_call`, and returns those that fail. Each has the whole timeout: a hanging hook must not
    /// shorten the time for another to thaw.
    async fn call_all_post(
        &self,
        pending: &PendingPostHooks,
        to_call: &PendingHooks,
        succeeded: bool,
        calls: &mut Calls,
    ) -> PendingHooks {
        let mut failed = PendingHooks::default();
        let not_callable =
            |name: &str, kind, reason: String| not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason);
        let mut programs = to_call.programs.clone();
        // The order of the pre hooks.
        programs.sort();
        if self.config.post_order == PostOrder::Reverse {
            programs.reverse();
        }
        for name in programs {
            // The directory may have changed while another program ran.
            let call = match self.callable(&name) {
                Ok(path) => {
                    let (reason, never) = (CallReason::post(succeeded), CancellationToken::new());
                    let deadline = Instant::now() + self.config.timeout;
                    call(&self.launcher, &path, pending, reason, deadline, &never).await.0
                }
                Err(problem) => not_callable(&name.to_string_lossy(), HookKind::Directory, problem),
            };
            if call.run.has_failed() {
                failed.programs.push(name);
            }
            calls.push(&pending.event, call);
        }
        failed.programs.sort();
        if let (true, Some(SyncTarget::Url(url))) = (to_call.server, &pending.event.sync) {
            let call = match &self.sync {
                Some(client) => ask(client, url, HookStage::Post, &Reached::default()).await,
                None => not_callable(url, HookKind::Sync, "hooks.sync.secret is no longer set".to_owned()),
            };
            failed.server = call.run.has_failed();
            calls.push(&pending.event, call);
        }
        failed
    }

    /// The path of the program `name`, if it may be called.
    fn callable(&self, name: &OsStr) -> Result<PathBuf, String> {
        let Some(directory) = &self.config.directory else {
            return Err("hooks.directory is no longer set".to_owned());
        };
        directory::callable(directory, name)
    }
}
