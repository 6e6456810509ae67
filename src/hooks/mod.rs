//! What is called around an operation, so that a snapshot is more than what a power cut leaves.
//!
//! One model, two kinds: programs in a directory, and servers in the guests. Each is called before
//! (`pre`) and after (`post`), and what a `pre` may have frozen gets its `post`.

pub mod directory;
pub mod event;

mod calls;
mod debt;
mod orphans;
mod output;
mod program;
mod sync;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use calls::milliseconds;
pub use debt::{Debt, Owed};
pub use directory::{Program, Unusable};
pub use event::{Event, EventDisk, EventVm, Operation, SyncTarget};

use crate::config::{self, OnFailure};
use crate::model::{HookKind, HookOutcome, HookRun, HookStage, VmId};
use calls::{Call, Calls, not_made};

/// All hooks of the service.
pub struct Hooks {
    config: config::Hooks,
    sync: Option<sync::Client>,
    /// The service stops: nothing new is waited for.
    hurry: CancellationToken,
}

/// What is done once more before another attempt, since time has passed. It may block.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// What the first half of an event has come to.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    calls: Calls,
    /// The call for whose failure the operation must not be done.
    pub refusal: Option<HookRun>,
    /// Whether something has put the guest's disks in order.
    pub quiesced: bool,
    /// From when on the guest may have been held up.
    pub since: Option<Instant>,
    /// The programs that were called, each with whether its second half is owed in any case.
    programs: Vec<(OsString, bool)>,
    /// Whether the server was asked.
    server: bool,
}

/// What the second half of an event has come to.
#[derive(Debug)]
pub struct Ended {
    /// What was called, in its order; after a first half, also that.
    pub runs: Vec<HookRun>,
    /// What did not do what it should, and has to be called again; nothing where that cannot be told.
    pub left: Option<Owed>,
}

impl Hooks {
    /// The hooks that `config` names. `tls` is what guests' servers are believed by.
    ///
    /// # Errors
    /// Where no client of these servers can be made.
    pub fn new(
        config: config::Hooks,
        tls: impl FnOnce(&config::Trust) -> io::Result<ClientConfig>,
    ) -> io::Result<Self> {
        let sync = match &config.sync {
            Some(sync) => {
                if sync.trust == config::Trust::Nothing {
                    tracing::warn!("hooks.sync.insecure_skip_verify: the secret goes to whoever answers");
                }
                Some(sync::Client::new(sync, tls(&sync.trust)?)?)
            }
            None => None,
        };
        Ok(Self { config, sync, hurry: CancellationToken::new() })
    }

    /// Where the sync server of `vm` is, if it is to be asked. `labels` are where its tag may stand;
    /// `address` is the guest's, where the definition names it.
    pub fn sync_target(&self, vm: &VmId, labels: &[&str], address: Option<&str>) -> Option<SyncTarget> {
        sync::target(self.config.sync.as_ref()?, vm, labels, address)
    }

    /// What is to be written down before `event`, where anything is called around it. This reads the
    /// directory.
    pub fn debt(&self, event: Event) -> Option<Debt> {
        if self.config.directory.is_none() && event.sync.is_none() {
            return None;
        }
        let owed = self.all(&event);
        Some(Debt { event, owed, earlier: Vec::new(), done: false, attempts: 0 })
    }

    /// All that may be called around `event`; nothing where the directory cannot be looked into.
    fn all(&self, event: &Event) -> Option<Owed> {
        let mut programs = Vec::new();
        if let Some(directory) = &self.config.directory {
            let found = directory::programs(directory).ok()?.into_iter();
            programs.extend(found.filter(|program| program.problem.is_none()).map(|program| program.name));
        }
        Some(Owed { programs, server: matches!(event.sync, Some(SyncTarget::Url(_))) })
    }

    /// How long what stands between the two halves may take while something is held.
    pub fn patience(&self) -> Duration {
        self.config.timeout
    }

    /// How long it may take from a `pre` that is ended until all is let go: the operation, a `post` of each
    /// kind, and the ends of what hangs.
    pub fn longest_end(&self) -> Duration {
        let server = self.config.sync.as_ref().map_or(Duration::ZERO, |sync| sync.timeout);
        2 * self.config.timeout + server + 3 * program::LONGEST_END
    }

    /// Lets no `pre` hook hold up the service's end any longer.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Calls the first half: the guest's server, and then the programs, in the order of their names.
    /// Always follow it with [`Hooks::after`].
    ///
    /// The server goes first: what it writes out has to go through what a program may freeze; and no
    /// program holds anything while another attempt is waited for.
    pub async fn before(&self, debt: &Debt, refresh: &Refresh) -> Begun {
        let mut begun =
            Begun { programs: debt.earlier.iter().map(|name| (name.clone(), true)).collect(), ..Begun::default() };
        self.ask_server(&debt.event, &mut begun, refresh).await;
        if begun.refusal.is_none() {
            self.call_programs(debt, &mut begun).await;
        }
        begun
    }

    /// Calls the second half, as far as it is owed: the programs, and then the guest's server. `done`
    /// is whether the operation was.
    pub async fn after(&self, event: &Event, mut begun: Begun, done: bool) -> Ended {
        let anyway = done || self.config.post_on_failure;
        let programs = begun.programs.into_iter().filter(|(_, owed)| anyway || *owed).map(|(name, _)| name);
        let owed = Owed { programs: programs.collect(), server: begun.server && (done || self.posts_to_servers()) };
        let left = self.call_owed(event, &owed, done, &mut begun.calls).await;
        begun.calls.tell(event);
        Ended { runs: begun.calls.runs().to_vec(), left: Some(left) }
    }

    /// Calls the second half of an event of which nobody knows how far it came, or what failed of it before.
    /// What is left of its hooks is ended first: it may freeze something yet.
    pub async fn again(&self, debt: &Debt) -> Ended {
        let (id, mut calls) = (debt.event.snapshot_id.clone(), Calls::default());
        orphans::end_on_a_thread(id, None).await;
        let known = debt.owed.clone().or_else(|| self.all(&debt.event));
        let mut owed = known.clone().unwrap_or(Owed { programs: Vec::new(), server: true });
        for name in &debt.earlier {
            if !owed.programs.contains(name) {
                owed.programs.push(name.clone());
            }
        }
        let mut left = Some(self.call_owed(&debt.event, &owed, debt.done, &mut calls).await);
        if let (None, Some(directory)) = (known, &self.config.directory) {
            let reason = "cannot be looked into, so nobody knows what is owed";
            let (name, kind) = (directory.display().to_string(), HookKind::Directory);
            calls.push(not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason));
            left = None;
        }
        calls.tell(&debt.event);
        Ended { runs: calls.runs().to_vec(), left }
    }

    fn posts_to_servers(&self) -> bool {
        self.config.sync.as_ref().is_some_and(|sync| sync.post_on_failure)
    }

    async fn ask_server(&self, event: &Event, begun: &mut Begun, refresh: &Refresh) {
        let (Some(client), Some(config)) = (&self.sync, &self.config.sync) else { return };
        let url = match &event.sync {
            None => return,
            Some(SyncTarget::Url(url)) => url,
            Some(SyncTarget::Unknown(reason)) => {
                return begun.calls.push(not_made(
                    "sync",
                    HookKind::Sync,
                    HookStage::Pre,
                    HookOutcome::Skipped,
                    reason,
                ));
            }
        };
        let mut attempts_left = config.retries;
        loop {
            let started = Instant::now();
            let (call, reached) = tokio::select! {
                asked = ask(client, url, HookStage::Pre) => asked,
                () = self.hurry.cancelled() => {
                    let run = calls::run(url.clone(), HookKind::Sync, HookStage::Pre, started);
                    (Call { run: HookRun { detail: "the service stops".to_owned(), ..run }, said: Vec::new() }, true)
                }
            };
            let run = call.run.clone();
            begun.calls.push(call);
            if run.outcome == HookOutcome::Ok {
                begun.quiesced = true;
                begun.since = Some(started);
                begun.server = true;
                return;
            }
            // Whatever it has done, it need not keep it up until the next attempt.
            if reached && config.post_on_failure {
                let (call, _) = ask(client, url, HookStage::Post).await;
                // One that did not hear it is told again at the end.
                begun.server = call.run.has_failed();
                begun.calls.push(call);
            }
            if attempts_left == 0 || self.hurry.is_cancelled() {
                begun.refusal = (config.on_failure == OnFailure::Abort).then_some(run);
                return;
            }
            attempts_left -= 1;
            // Nothing is held.
            begun.calls.tell(event);
            tokio::select! {
                () = tokio::time::sleep(config.retry_delay) => {}
                () = self.hurry.cancelled() => {}
            }
            let refresh = Arc::clone(refresh);
            drop(tokio::task::spawn_blocking(move || refresh()).await);
        }
    }

    async fn call_programs(&self, debt: &Debt, begun: &mut Begun) {
        let Some(directory) = &self.config.directory else { return };
        let deadline = Instant::now() + self.config.timeout;
        // At once: a thread to do it on would have to be waited for, perhaps with the guest frozen.
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
                return begun.calls.push(call);
            }
        };
        for Program { name, path, problem } in found {
            let late = (Instant::now() >= deadline).then(|| "no time was left for it".to_owned());
            let new = (!debt.knows(&name)).then(|| "came when the operation had begun: it is for the next".to_owned());
            if let Some(problem) = problem.or(new).or(late) {
                let shown = name.to_string_lossy();
                begun.calls.push(not_made(shown, HookKind::Directory, HookStage::Pre, HookOutcome::Skipped, problem));
                continue;
            }
            begun.since.get_or_insert_with(Instant::now);
            let (call, quiesced) = call(&path, &debt.event, None, deadline, &self.hurry).await;
            let run = call.run.clone();
            begun.calls.push(call);
            begun.quiesced |= quiesced && !run.has_failed();
            match begun.programs.iter_mut().find(|(known, _)| *known == name) {
                Some((_, owed)) => *owed |= quiesced,
                None => begun.programs.push((name, quiesced)),
            }
            if run.has_failed() && self.config.on_failure == OnFailure::Abort {
                begun.refusal = Some(run);
                return;
            }
        }
    }

    /// Calls all that is `owed`; says what of it has to be called again. Each has all its time: thawing is
    /// not cut short by another's hanging.
    async fn call_owed(&self, event: &Event, owed: &Owed, done: bool, calls: &mut Calls) -> Owed {
        let mut left = Owed::default();
        let failed =
            |name: &str, kind, reason: String| not_made(name, kind, HookStage::Post, HookOutcome::Failed, reason);
        for name in &owed.programs {
            // Looked for anew: another may have been slow.
            let call = match self.callable(name) {
                Ok(path) => {
                    let deadline = Instant::now() + self.config.timeout;
                    call(&path, event, Some(done), deadline, &CancellationToken::new()).await.0
                }
                Err(problem) => failed(&name.to_string_lossy(), HookKind::Directory, problem),
            };
            if call.run.has_failed() {
                left.programs.push(name.clone());
            }
            calls.push(call);
        }
        if let (true, Some(SyncTarget::Url(url))) = (owed.server, &event.sync) {
            let call = match &self.sync {
                Some(client) => ask(client, url, HookStage::Post).await.0,
                None => failed(url, HookKind::Sync, "hooks.sync.secret is not set any more".to_owned()),
            };
            left.server = call.run.has_failed();
            calls.push(call);
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

/// Calls one program: before the operation, or after it, which then is `done` or has failed. Says too whether
/// it said `quiesced`.
async fn call(
    program: &Path,
    event: &Event,
    done: Option<bool>,
    deadline: Instant,
    hurry: &CancellationToken,
) -> (Call, bool) {
    let stage = if done.is_none() { HookStage::Pre } else { HookStage::Post };
    let started = Instant::now();
    let ended = program::call(program, event, stage, event.message(stage, done), deadline, hurry).await;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run = calls::run(name, HookKind::Directory, stage, started);
    let quiesced = ended.quiesced();
    (Call { run: HookRun { outcome: ended.outcome, detail: ended.detail, ..run }, said: ended.said }, quiesced)
}

/// Asks one server; says too whether it may have done something.
async fn ask(client: &sync::Client, url: &str, stage: HookStage) -> (Call, bool) {
    let request = match stage {
        HookStage::Pre => sync::Request::Sync,
        HookStage::Post => sync::Request::PostSync,
    };
    let started = Instant::now();
    let answer = client.ask(url, request).await;
    let run = calls::run(url.to_owned(), HookKind::Sync, stage, started);
    (Call { run: HookRun { outcome: answer.outcome, detail: answer.detail, ..run }, said: Vec::new() }, answer.reached)
}

#[cfg(test)]
mod tests;
