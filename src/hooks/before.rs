//! The first half of an event: the guest's server is asked, and then the programs are called.

use std::ffi::OsString;
use std::sync::Arc;

use tokio::time::Instant;

use super::calls::{self, Call, Calls, not_made};
use super::directory::{self, Program, Unusable};
use super::event::{Event, SyncTarget};
use super::pending::PendingPostHooks;
use super::sync::Reached;
use super::{Hooks, ask, call};
use crate::config::OnFailure;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};

/// What is done once more before another attempt, since time has passed. It may block.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// What the first half of an event has come to.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    pub(super) calls: Calls,
    /// The call for whose failure the operation must not be done.
    pub refusal: Option<HookRun>,
    /// Whether something has put the guest's disks in order.
    pub quiesced: bool,
    /// From when on the guest may have been held up.
    pub since: Option<Instant>,
    pub(super) programs: Vec<Begin>,
    /// Whether the server may hold something.
    pub(super) server: bool,
    /// Whether the server has said that the guest is in order.
    pub(super) synced: bool,
}

/// A program whose first half was called.
#[derive(Clone, Debug)]
pub(super) struct Begin {
    pub name: OsString,
    /// Whether it printed `quiesced`: then its second half is owed in any case, and has to go well.
    pub quiesced: bool,
    /// Whether its second half is owed since an earlier operation.
    pub owed_earlier: bool,
}

impl Hooks {
    /// Calls the first half: the guest's server, and then the programs, in the order of their names.
    /// Always follow it with [`Hooks::after`].
    ///
    /// The server goes first: what it writes out has to go through what a program may freeze; and no
    /// program holds anything while another attempt is waited for.
    pub async fn before(&self, debt: &PendingPostHooks, refresh: &Refresh) -> Begun {
        let earlier = debt.earlier.iter();
        let earlier = earlier.map(|name| Begin { name: name.clone(), quiesced: false, owed_earlier: true });
        let mut begun = Begun { programs: earlier.collect(), ..Begun::default() };
        self.ask_server(&debt.event, &mut begun, refresh).await;
        if begun.refusal.is_none() {
            self.call_programs(debt, &mut begun).await;
        }
        begun
    }

    async fn ask_server(&self, event: &Event, begun: &mut Begun, refresh: &Refresh) {
        let (Some(client), Some(config)) = (&self.sync, &self.config.sync) else { return };
        let url = match &event.sync {
            None => return,
            Some(SyncTarget::Url(url)) => url,
            Some(SyncTarget::Unknown(reason)) => {
                let call = not_made("sync", HookKind::Sync, HookStage::Pre, HookOutcome::Skipped, reason);
                return begun.calls.push(event, call);
            }
        };
        let mut attempts_left = config.retries;
        loop {
            let (started, reached) = (Instant::now(), Reached::default());
            let call = tokio::select! {
                asked = ask(client, url, HookStage::Pre, &reached) => asked,
                () = self.cancel_pre_hooks.cancelled() => {
                    let run = calls::run(url.clone(), HookKind::Sync, HookStage::Pre, started);
                    let run = HookRun { detail: "the service stops".to_owned(), ..run };
                    Call { run, said: Vec::new(), id: None }
                }
            };
            let run = call.run.clone();
            begun.calls.push(event, call);
            if run.outcome == HookOutcome::Ok {
                begun.quiesced = true;
                begun.since = Some(started);
                (begun.server, begun.synced) = (true, true);
                return;
            }
            if reached.get() {
                // It may hold something: it is owed the end of the operation, unless it is told at once that it
                // need not keep that up until the next attempt.
                begun.server = true;
                if config.post_on_failure {
                    let call = ask(client, url, HookStage::Post, &Reached::default()).await;
                    begun.server = call.run.has_failed();
                    begun.calls.push(event, call);
                }
            }
            if attempts_left == 0 || self.cancel_pre_hooks.is_cancelled() {
                begun.refusal = (config.on_failure == OnFailure::Abort).then_some(run);
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

    async fn call_programs(&self, debt: &PendingPostHooks, begun: &mut Begun) {
        let Some(directory) = &self.config.directory else { return };
        let (event, deadline) = (&debt.event, Instant::now() + self.config.timeout);
        let found = match directory::programs(directory) {
            Ok(found) => found,
            Err(unusable) => {
                // One that is not there has failed; one that must not be used is passed over, as a program is.
                let outcome = match unusable {
                    Unusable::Unreadable(_) => HookOutcome::Failed,
                    Unusable::Untrusted(_) => HookOutcome::Skipped,
                };
                let name = directory.display().to_string();
                let call = not_made(name, HookKind::Directory, HookStage::Pre, outcome, &unusable);
                let refuses = call.run.has_failed() && self.config.on_failure == OnFailure::Abort;
                begun.refusal = refuses.then(|| call.run.clone());
                return begun.calls.push(event, call);
            }
        };
        for Program { name, path, problem } in found.into_iter().filter(|program| !program.is_hidden()) {
            let late = (Instant::now() >= deadline).then(|| "no time was left for it".to_owned());
            let new = (!debt.knows(&name)).then(|| "came when the operation had begun: it is for the next".to_owned());
            if let Some(problem) = problem.or(new).or(late) {
                let shown = name.to_string_lossy();
                let call = not_made(shown, HookKind::Directory, HookStage::Pre, HookOutcome::Skipped, problem);
                begun.calls.push(event, call);
                continue;
            }
            begun.since.get_or_insert_with(Instant::now);
            let (call, quiesced) = call(&path, debt, None, deadline, &self.cancel_pre_hooks).await;
            let run = call.run.clone();
            begun.calls.push(event, call);
            begun.quiesced |= quiesced && !run.has_failed();
            match begun.programs.iter_mut().find(|program| program.name == name) {
                Some(program) => program.quiesced |= quiesced,
                None => begun.programs.push(Begin { name, quiesced, owed_earlier: false }),
            }
            if run.has_failed() && self.config.on_failure == OnFailure::Abort {
                begun.refusal = Some(run);
                return;
            }
        }
    }
}
