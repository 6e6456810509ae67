//! The second half of an event: what may be frozen is let go.

use std::ffi::OsStr;
use std::path::PathBuf;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::before::{Begin, Begun};
use super::calls::{Calls, PastCall, not_made};
use super::event::{Operation, SyncTarget};
use super::pending::{PendingHooks, PendingPostHooks};
use super::sync::Reached;
use super::{Hooks, ask, call, directory, leftover_processes};
use crate::config::PostOrder;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};

/// What the run of a program that is not owed its second half says.
const NOT_CALLED: &str = "not called: post_on_failure is false, and its pre did not print \"quiesced\"";

/// What the run of a server that is not owed it says.
const NOT_TOLD: &str = "not called: post_on_failure is false for hooks.sync";

/// What the second half of an event has come to.
#[derive(Debug, Default)]
pub struct Ended {
    /// What was called, in its order; after a first half, also that.
    pub runs: Vec<HookRun>,
    /// What did not do what it should, and has to be called again; nothing where that cannot be told.
    pub left: Option<PendingHooks>,
    /// Calls of programs that are over.
    pub past: Vec<PastCall>,
    /// Whether something has put the guest's disks in order, and kept them so until they were cloned.
    pub quiesced: bool,
    /// Hooks whose first half was called and whose second was not, because the config says so.
    pub not_called: Vec<String>,
}

impl Hooks {
    /// Calls the second half, as far as it is owed: the programs, and then the guest's server. `done`
    /// is whether the operation was.
    pub async fn after(&self, debt: &PendingPostHooks, begun: Begun, done: bool) -> Ended {
        let Begun { mut calls, mut quiesced, programs, server, synced, .. } = begun;
        let owes = |program: &Begin| done || self.config.post_on_failure || program.quiesced || program.owed_earlier;
        let owes_server = server && (done || self.posts_to_servers());
        let owed = programs.iter().filter(|program| owes(program)).map(|program| program.name.clone());
        let owed = PendingHooks { programs: owed.collect(), server: owes_server };
        let first_post = calls.runs.len();
        let left = self.call_owed(debt, &owed, done, &mut calls).await;
        // A thaw that failed may mean that the freeze had ended before the disks were cloned.
        let said_quiesced = |run: &HookRun| match run.kind {
            HookKind::Directory => programs.iter().any(|one| one.quiesced && one.name.to_string_lossy() == run.name),
            HookKind::Sync => synced,
        };
        let is_made = done && debt.event.operation == Operation::SnapshotCreate;
        let posts = calls.runs[first_post..].iter_mut();
        for run in posts.filter(|run| is_made && run.has_failed() && said_quiesced(run)) {
            run.deny_quiesced();
            quiesced = false;
        }
        let mut not_called = Vec::new();
        for program in programs.iter().filter(|program| !owes(program)) {
            let name = program.name.to_string_lossy();
            not_called.push(name.to_string());
            let call = not_made(name, HookKind::Directory, HookStage::Post, HookOutcome::Skipped, NOT_CALLED);
            calls.push(&debt.event, call);
        }
        if let (true, Some(SyncTarget::Url(url))) = (server && !owes_server, &debt.event.sync) {
            not_called.push(url.clone());
            let call = not_made(url, HookKind::Sync, HookStage::Post, HookOutcome::Skipped, NOT_TOLD);
            calls.push(&debt.event, call);
        }
        Ended { runs: calls.runs, left: Some(left), past: calls.past, quiesced, not_called }
    }

    /// Calls the second half of an event of which nobody knows how far it came, or what failed of it before.
    /// What is left of its calls that failed, or are not known to be over, is ended first: it may freeze
    /// something yet.
    pub async fn again(&self, debt: &PendingPostHooks) -> Ended {
        leftover_processes::end_on_a_thread(leftover_processes::Which::unfinished(debt)).await;
        let mut calls = Calls { runs: Vec::new(), past: debt.past.clone() };
        let known = debt.owed.clone().or_else(|| self.all(&debt.event));
        let mut owed = known.clone().unwrap_or(PendingHooks { programs: Vec::new(), server: true });
        for name in &debt.earlier {
            if !owed.programs.contains(name) {
                owed.programs.push(name.clone());
            }
        }
        let mut left = Some(self.call_owed(debt, &owed, debt.done, &mut calls).await);
        if let (None, Some(directory)) = (known, &self.config.directory) {
            let reason = "cannot be looked into, so nobody knows what is owed";
            let (name, kind) = (directory.display().to_string(), HookKind::Directory);
            calls.push(&debt.event, not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason));
            left = None;
        }
        Ended { runs: calls.runs, left, past: calls.past, quiesced: false, not_called: Vec::new() }
    }

    fn posts_to_servers(&self) -> bool {
        self.config.sync.as_ref().is_some_and(|sync| sync.post_on_failure)
    }

    /// Calls all that is `owed`; says what of it has to be called again. Each has all its time: thawing is
    /// not cut short by another's hanging.
    async fn call_owed(
        &self,
        debt: &PendingPostHooks,
        owed: &PendingHooks,
        done: bool,
        calls: &mut Calls,
    ) -> PendingHooks {
        let mut left = PendingHooks::default();
        let failed =
            |name: &str, kind, reason: String| not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason);
        let mut programs = owed.programs.clone();
        // As they were called before the operation.
        programs.sort();
        if self.config.post_order == PostOrder::Reverse {
            programs.reverse();
        }
        for name in programs {
            // Looked for anew: another may have been slow.
            let call = match self.callable(&name) {
                Ok(path) => {
                    let deadline = Instant::now() + self.config.timeout;
                    call(&path, debt, Some(done), deadline, &CancellationToken::new()).await.0
                }
                Err(problem) => failed(&name.to_string_lossy(), HookKind::Directory, problem),
            };
            if call.run.has_failed() {
                left.programs.push(name);
            }
            calls.push(&debt.event, call);
        }
        left.programs.sort();
        if let (true, Some(SyncTarget::Url(url))) = (owed.server, &debt.event.sync) {
            let call = match &self.sync {
                Some(client) => ask(client, url, HookStage::Post, &Reached::default()).await,
                None => failed(url, HookKind::Sync, "hooks.sync.secret is not set any more".to_owned()),
            };
            left.server = call.run.has_failed();
            calls.push(&debt.event, call);
        }
        left
    }

    /// Where the program `name` lies, if it may be called.
    fn callable(&self, name: &OsStr) -> Result<PathBuf, String> {
        let Some(directory) = &self.config.directory else {
            return Err("hooks.directory is not set any more".to_owned());
        };
        let found =
            directory::programs(directory).map_err(|unusable| format!("{}: {unusable}", directory.display()))?;
        let program = found.into_iter().find(|program| program.name == name);
        let program = program.ok_or_else(|| format!("is not in {} any more", directory.display()))?;
        program.problem.map_or(Ok(program.path), Err)
    }
}
