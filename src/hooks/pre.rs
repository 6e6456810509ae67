//! Before an operation: the guest's server is asked, then the programs are called.

use std::ffi::OsString;
use std::sync::Arc;

use tokio::time::Instant;

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
    pub async fn call_pre(&self, pending: &PendingPostHooks, refresh: &Refresh) -> PreResult {
        let earlier = pending.earlier.iter();
        let earlier = earlier.map(|name| CalledProgram { name: name.clone(), quiesced: false, pending_earlier: true });
        let mut result = PreResult { programs: earlier.collect(), ..PreResult::default() };
        self.ask_server(&pending.event, &mut result, refresh).await;
        if result.refusal.is_none() {
            self.call_programs(pending, &mut result).await;
        }
        result
    }

    async fn ask_server(&self, event: &Event, result: &mut PreResult, refresh: &Refresh) {
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
            let call = tokio::select! {
                asked = ask(client, url, HookStage::Pre, &reached) => asked,
                () = self.cancel_pre_hooks.cancelled() => {
                    let run = calls::run(url.clone(), HookKind::Sync, HookStage::Pre, started);
                    let run = HookRun { detail: STOPPING.to_owned(), ..run };
                    Call { run, output: Vec::new(), id: None }
                }
            };
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
                // otherwise its post hook stays pending.
                result.server = true;
                if config.post_on_failure {
                    let call = ask(client, url, HookStage::Post, &Reached::default()).await;
                    result.server = call.run.has_failed();
                    result.calls.push(event, call);
                }
            }
            if attempts_left == 0 || self.cancel_pre_hooks.is_cancelled() {
                result.refusal = (config.on_failure == OnFailure::Abort).then_some(run);
                return;
            }
            attempts_left -= 1;
            tokio::select! {
                () = tokio::time::sleep(config.retry_delay) => {}
                () = self.cancel_pre_hooks.cancelled() => {}
            }
            let refresh = Arc::clone(refresh);
            drop(tokio::task::spawn_blocking(move || refresh()).await);
        }
    }

    async fn call_programs(&self, pending: &PendingPostHooks, result: &mut PreResult) {
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
            if let Some(problem) = problem.or(new).or(late) {
                let shown = name.to_string_lossy();
                let call = not_made(shown, HookKind::Directory, HookStage::Pre, HookOutcome::Skipped, problem);
                result.calls.push(event, call);
                continue;
            }
            result.since.get_or_insert_with(Instant::now);
            let (call, quiesced) =
                call(&self.launcher, &path, pending, CallReason::Pre, deadline, &self.cancel_pre_hooks).await;
            let run = call.run.clone();
            result.calls.push(event, call);
            result.quiesced |= quiesced && !run.has_failed();
            match result.programs.iter_mut().find(|program| program.name == name) {
                Some(program) => program.quiesced |= quiesced,
                None => result.programs.push(CalledProgram { name, quiesced, pending_earlier: false }),
            }
            if run.has_failed() && self.config.on_failure == OnFailure::Abort {
                result.refusal = Some(run);
                return;
            }
        }
    }
}

/// Why a pre hook is cancelled.
const STOPPING: &str = "the service is stopping";
