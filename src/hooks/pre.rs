//! Before an operation: the guest's server is asked, then the programs are called.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calls::{self, Call, Calls, not_made};
use super::directory::{self, Program};
use super::event::{CallReason, Event, SyncTarget};
use super::pending::PendingPostHooks;
use super::sync::Reached;
use super::{Hooks, ask, call};
use crate::config::OnFailure;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};
use crate::sys::trusted_path::Unusable;

/// Brings the preparation of the operation up to date before another attempt. It may block.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// The result of the pre hooks.
#[derive(Clone, Debug, Default)]
pub struct PreResult {
    pub(super) calls: Calls,
    /// The failed call that forbids the operation.
    pub refusal: Option<HookRun>,
    /// Whether a hook has quiesced the guest's disks.
    pub quiesced: bool,
    /// When the first call that may have frozen the guest started.
    pub since: Option<Instant>,
    pub(super) programs: Vec<CalledProgram>,
    /// Whether the server may have frozen something.
    pub(super) server: bool,
    /// Whether the server has confirmed that the guest is quiesced.
    pub(super) synced: bool,
}

impl PreResult {
    /// The calls in their order.
    pub fn runs(&self) -> &[HookRun] {
        &self.calls.runs
    }
}

#[derive(Clone, Debug)]
pub(super) struct CalledProgram {
    pub name: OsString,
    /// Whether it printed `quiesced`. Then its post hook is called in any case, and has to succeed.
    pub quiesced: bool,
    /// Whether its post hook is pending from an earlier operation.
    pub pending_earlier: bool,
}

impl Hooks {
    /// Calls the pre hooks: the guest's server, then the programs in the order of their names. [`Hooks::call_post`]
    /// must follow in any case.
    ///
    /// The server is called first. A program may freeze storage that the server's flush must reach, and nothing may
    /// stay frozen during the server's retries.
    ///
    /// After `cancel`, a running program ends and no further call is made. It is a token of [`Hooks::cancellation`].
    /// Only the stop of the service interrupts a request to a server.
    pub async fn call_pre(
        &self,
        pending: &PendingPostHooks,
        refresh: &Refresh,
        cancel: &CancellationToken,
    ) -> PreResult {
        let earlier = pending.earlier.iter();
        let earlier = earlier.map(|name| CalledProgram { name: name.clone(), quiesced: false, pending_earlier: true });
        let mut result = PreResult { programs: earlier.collect(), ..PreResult::default() };
        self.ask_server(&pending.event, &mut result, refresh, cancel).await;
        if result.refusal.is_none() {
            self.call_programs(pending, &mut result, cancel).await;
        }
        result
    }

    /// Why pre hooks are cancelled.
    fn cancellation_reason(&self) -> &'static str {
        if self.cancel_pre_hooks.is_cancelled() { STOPPING } else { NOT_DONE }
    }

    async fn ask_server(&self, event: &Event, result: &mut PreResult, refresh: &Refresh, cancel: &CancellationToken) {
        let (Some(client), Some(config)) = (&self.sync, &self.config.sync) else { return };
        let url = match &event.sync {
            None => return,
            Some(SyncTarget::Url(url)) => url,
            Some(SyncTarget::Unknown(reason)) => {
                let call = not_made("sync", HookKind::Sync, HookStage::Pre, HookOutcome::Skipped, reason);
                return result.calls.push(event, call);
            }
        };
        let mut attempts_left = config.retries;
        loop {
            let (started, reached) = (Instant::now(), Reached::default());
            // The server may not notice that the request was interrupted, and freeze after the post hook has thawed.
            let call = match cancel.is_cancelled() {
                true => None,
                false => self.cancel_pre_hooks.run_until_cancelled(ask(client, url, HookStage::Pre, &reached)).await,
            };
            let call = call.unwrap_or_else(|| {
                let run = calls::run(url.clone(), HookKind::Sync, HookStage::Pre, started);
                let run = HookRun { detail: self.cancellation_reason().to_owned(), ..run };
                Call { run, output: Vec::new(), id: None }
            });
            let run = call.run.clone();
            result.calls.push(event, call);
            if run.outcome == HookOutcome::Ok {
                result.quiesced = true;
                result.since = Some(started);
                (result.server, result.synced) = (true, true);
                return;
            }
            if reached.get() {
                // The guest may be frozen. With `post_on_failure` it is thawed at once, until the next attempt;
                // otherwise it is called only after the operation, and only if that has succeeded.
                result.server = true;
                if config.post_on_failure {
                    let call = ask(client, url, HookStage::Post, &Reached::default()).await;
                    result.server = call.run.has_failed();
                    result.calls.push(event, call);
                }
            }
            if attempts_left == 0 || cancel.is_cancelled() {
                result.refusal = (config.on_failure == OnFailure::Abort).then_some(run);
                return;
            }
            attempts_left -= 1;
            // A hung repository delays the refresh, but not its cancellation. Then the next attempt is not made.
            let refresh = Arc::clone(refresh);
            let prepare = async {
                tokio::time::sleep(config.retry_delay).await;
                drop(tokio::task::spawn_blocking(move || refresh()).await);
            };
            let _ = cancel.run_until_cancelled(prepare).await;
        }
    }

    async fn call_programs(&self, pending: &PendingPostHooks, result: &mut PreResult, cancel: &CancellationToken) {
        let Some(directory) = &self.config.directory else { return };
        let (event, deadline) = (&pending.event, Instant::now() + self.config.timeout);
        let found = match directory::programs(directory) {
            Ok(found) => found,
            Err(unusable) => {
                // A missing directory is a failure. An untrusted one is skipped, as an untrusted program is.
                let outcome = match unusable {
                    Unusable::Unreadable(_) => HookOutcome::Failed,
                    Unusable::Untrusted(_) => HookOutcome::Skipped,
                };
                let name = directory.display().to_string();
                let call = not_made(name, HookKind::Directory, HookStage::Pre, outcome, &unusable);
                let refuses = call.run.has_failed() && self.config.on_failure == OnFailure::Abort;
                result.refusal = refuses.then(|| call.run.clone());
                return result.calls.push(event, call);
            }
        };
        for Program { name, path, problem } in found.into_iter().filter(|program| !program.is_hidden()) {
            let late = (Instant::now() >= deadline).then(|| "no time was left for it".to_owned());
            let is_new = !pending.knows(&name);
            let new = is_new.then(|| "was added after the operation began; the next one calls it".to_owned());
            let shown = name.to_string_lossy();
            if let Some(problem) = problem.or(new).or(late) {
                let call = not_made(shown, HookKind::Directory, HookStage::Pre, HookOutcome::Skipped, problem);
                result.calls.push(event, call);
                continue;
            }
            let call = if cancel.is_cancelled() {
                let reason = self.cancellation_reason();
                not_made(shown, HookKind::Directory, HookStage::Pre, HookOutcome::Failed, reason)
            } else {
                self.call_program((name, &path), pending, deadline, cancel, result).await
            };
            let run = call.run.clone();
            result.calls.push(event, call);
            if run.has_failed() && self.config.on_failure == OnFailure::Abort {
                result.refusal = Some(run);
                return;
            }
        }
    }

    async fn call_program(
        &self,
        (name, path): (OsString, &Path),
        pending: &PendingPostHooks,
        deadline: Instant,
        cancel: &CancellationToken,
        result: &mut PreResult,
    ) -> Call {
        result.since.get_or_insert_with(Instant::now);
        let (mut call, quiesced) = call(&self.launcher, path, pending, CallReason::Pre, deadline, cancel).await;
        if cancel.is_cancelled() && call.run.has_failed() {
            call.run.detail = format!("{}: {}", self.cancellation_reason(), call.run.detail);
        }
        result.quiesced |= quiesced && !call.run.has_failed();
        match result.programs.iter_mut().find(|program| program.name == name) {
            Some(program) => program.quiesced |= quiesced,
            None => result.programs.push(CalledProgram { name, quiesced, pending_earlier: false }),
        }
        call
    }
}

const STOPPING: &str = "the service is stopping";

/// The operation on a group has failed already: a hook of another VM, or the time limit.
const NOT_DONE: &str = "no longer needed, because the operation on this group of VMs has failed";
