//! What is called around an operation, so that a snapshot is more than what a power cut leaves.
//!
//! One model, two kinds: programs in a directory, and servers in the guests. Each is called before
//! (`pre`) and after (`post`), and what a `pre` may have frozen gets its `post`.

pub mod directory;
pub mod event;

mod orphans;
mod output;
mod program;
mod sync;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use directory::{Program, Unusable};
pub use event::{Event, EventDisk, EventVm, Operation, SyncTarget};

use crate::config::{self, OnFailure};
use crate::model::{HookKind, HookOutcome, HookRun, HookStage, VmId};

/// All hooks of the service.
pub struct Hooks {
    config: config::Hooks,
    sync: Option<sync::Client>,
    /// The service stops: nothing new is waited for.
    hurry: CancellationToken,
}

/// What the first half of an event has come to.
#[derive(Debug)]
pub struct Begun {
    /// What was called, in its order.
    pub runs: Vec<HookRun>,
    /// The call for whose failure the operation must not be done.
    pub refusal: Option<HookRun>,
    /// Whether something has put the guest's disks in order.
    pub quiesced: bool,
    /// From when on the guest may have been held up.
    pub since: Option<Instant>,
    owed: Owed,
}

/// What has to be called after the operation.
#[derive(Debug)]
enum Owed {
    /// Whatever there is: nobody knows how far the first half came.
    All,
    /// What the first half called: programs, each with whether it quiesced; and the server.
    These { programs: Vec<(OsString, bool)>, server: bool },
}

impl Begun {
    fn nothing() -> Self {
        let owed = Owed::These { programs: Vec::new(), server: false };
        Self { runs: Vec::new(), refusal: None, quiesced: false, since: None, owed }
    }

    /// What is left of a first half that nobody saw the end of: everything is owed.
    pub fn unknown() -> Self {
        Self { owed: Owed::All, ..Self::nothing() }
    }
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

    /// Whether anything is called around `event`.
    pub fn concern(&self, event: &Event) -> bool {
        self.config.directory.is_some() || event.sync.is_some()
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
    pub async fn before(&self, event: &Event) -> Begun {
        let mut begun = Begun::nothing();
        self.ask_server(event, &mut begun).await;
        if begun.refusal.is_none() {
            self.call_programs(event, &mut begun).await;
        }
        begun
    }

    /// Calls the second half, as far as it is owed: the programs, and then the guest's server. `done`
    /// is whether the operation was.
    pub async fn after(&self, event: &Event, begun: &Begun, done: bool) -> Vec<HookRun> {
        let mut runs = Vec::new();
        if let Some(directory) = &self.config.directory {
            let wanted = |name: &OsStr| match &begun.owed {
                Owed::All => true,
                Owed::These { programs, .. } => programs
                    .iter()
                    .any(|(program, quiesced)| program == name && (done || *quiesced || self.config.post_on_failure)),
            };
            let nothing_owed = matches!(&begun.owed, Owed::These { programs, .. } if programs.is_empty());
            if !nothing_owed {
                self.call_programs_after(directory, event, done, wanted, &mut runs).await;
            }
        }
        let server = match &begun.owed {
            Owed::All => true,
            Owed::These { server, .. } => *server && (done || self.posts_to_servers()),
        };
        if let (true, Some(client), Some(SyncTarget::Url(url))) = (server, &self.sync, &event.sync) {
            let (run, _) = ask(client, event, url, HookStage::Post).await;
            runs.push(run);
        }
        runs
    }

    /// Calls the second half of an event of an earlier life of the service, of which nobody knows how
    /// far it came.
    pub async fn after_crash(&self, event: &Event) -> Vec<HookRun> {
        let id = event.snapshot_id.clone();
        let _ = tokio::task::spawn_blocking(move || orphans::end(&id)).await;
        self.after(event, &Begun::unknown(), false).await
    }

    fn posts_to_servers(&self) -> bool {
        self.config.sync.as_ref().is_some_and(|sync| sync.post_on_failure)
    }

    async fn ask_server(&self, event: &Event, begun: &mut Begun) {
        let (Some(client), Some(config)) = (&self.sync, &self.config.sync) else { return };
        let url = match &event.sync {
            None => return,
            Some(SyncTarget::Url(url)) => url,
            Some(SyncTarget::Unknown(reason)) => {
                return begun.runs.push(skipped(event, "sync", HookKind::Sync, HookStage::Pre, reason));
            }
        };
        let mut attempts_left = config.retries;
        loop {
            let started = Instant::now();
            let (run, reached) = tokio::select! {
                asked = ask(client, event, url, HookStage::Pre) => asked,
                () = self.hurry.cancelled() => {
                    let run = run(url.clone(), HookKind::Sync, HookStage::Pre, started);
                    (told(event, HookRun { detail: "the service stops".to_owned(), ..run }), true)
                }
            };
            begun.runs.push(run.clone());
            if run.outcome == HookOutcome::Ok {
                begun.quiesced = true;
                begun.since = Some(started);
                begun.owed = Owed::These { programs: Vec::new(), server: true };
                return;
            }
            // Whatever it has done, it need not keep it up until the next attempt.
            if reached && config.post_on_failure {
                begun.runs.push(ask(client, event, url, HookStage::Post).await.0);
            }
            if attempts_left == 0 || self.hurry.is_cancelled() {
                begun.refusal = (config.on_failure == OnFailure::Abort).then_some(run);
                return;
            }
            attempts_left -= 1;
            tokio::select! {
                () = tokio::time::sleep(config.retry_delay) => {}
                () = self.hurry.cancelled() => {}
            }
        }
    }

    async fn call_programs(&self, event: &Event, begun: &mut Begun) {
        let Some(directory) = &self.config.directory else { return };
        let deadline = Instant::now() + self.config.timeout;
        // At once: a thread to do it on would have to be waited for, perhaps with the guest frozen.
        let found = match directory::programs(directory) {
            Ok(found) => found,
            Err(unusable) => {
                let run = unusable_run(event, directory, HookStage::Pre, &unusable);
                begun.refusal = (run.has_failed() && self.config.on_failure == OnFailure::Abort).then(|| run.clone());
                return begun.runs.push(run);
            }
        };
        for Program { name, problem } in found {
            let shown = name.to_string_lossy().into_owned();
            let late = (Instant::now() >= deadline).then(|| "no time was left for it".to_owned());
            if let Some(problem) = problem.or(late) {
                begun.runs.push(skipped(event, &shown, HookKind::Directory, HookStage::Pre, &problem));
                continue;
            }
            begun.since.get_or_insert_with(Instant::now);
            let (run, quiesced) = call(directory, &name, event, None, deadline, &self.hurry).await;
            begun.runs.push(run.clone());
            begun.quiesced |= quiesced && !run.has_failed();
            if let Owed::These { programs, .. } = &mut begun.owed {
                programs.push((name, quiesced));
            }
            if run.has_failed() && self.config.on_failure == OnFailure::Abort {
                begun.refusal = Some(run);
                return;
            }
        }
    }

    /// Each of them with all its time: thawing is not cut short by another's hanging.
    async fn call_programs_after(
        &self,
        directory: &Path,
        event: &Event,
        done: bool,
        wanted: impl Fn(&OsStr) -> bool,
        runs: &mut Vec<HookRun>,
    ) {
        let found = match directory::programs(directory) {
            Ok(found) => found,
            Err(unusable) => return runs.push(unusable_run(event, directory, HookStage::Post, &unusable)),
        };
        let never = CancellationToken::new();
        for Program { name, problem } in found.into_iter().filter(|program| wanted(&program.name)) {
            runs.push(match problem {
                Some(problem) => {
                    skipped(event, &name.to_string_lossy(), HookKind::Directory, HookStage::Post, &problem)
                }
                None => {
                    let deadline = Instant::now() + self.config.timeout;
                    call(directory, &name, event, Some(done), deadline, &never).await.0
                }
            });
        }
    }
}

/// Calls one program: before the operation, or after it, which then is `done` or has failed.
async fn call(
    directory: &Path,
    name: &OsStr,
    event: &Event,
    done: Option<bool>,
    deadline: Instant,
    hurry: &CancellationToken,
) -> (HookRun, bool) {
    let stage = if done.is_none() { HookStage::Pre } else { HookStage::Post };
    let started = Instant::now();
    let path = directory::path_of(directory, name);
    let ended = program::call(&path, event, stage, event.message(stage, done), deadline, hurry).await;
    let run = run(name.to_string_lossy().into_owned(), HookKind::Directory, stage, started);
    (told(event, HookRun { outcome: ended.outcome, detail: ended.detail, ..run }), ended.quiesced)
}

/// Asks one server; says too whether it may have done something.
async fn ask(client: &sync::Client, event: &Event, url: &str, stage: HookStage) -> (HookRun, bool) {
    let request = match stage {
        HookStage::Pre => sync::Request::Sync,
        HookStage::Post => sync::Request::PostSync,
    };
    let started = Instant::now();
    let answer = client.ask(url, request).await;
    let run = run(url.to_owned(), HookKind::Sync, stage, started);
    (told(event, HookRun { outcome: answer.outcome, detail: answer.detail, ..run }), answer.reached)
}

fn run(name: String, kind: HookKind, stage: HookStage, started: Instant) -> HookRun {
    let duration_ms = milliseconds(started.elapsed());
    HookRun { name, kind, stage, outcome: HookOutcome::Failed, duration_ms, detail: String::new() }
}

fn skipped(event: &Event, name: &str, kind: HookKind, stage: HookStage, reason: &str) -> HookRun {
    let run = run(name.to_owned(), kind, stage, Instant::now());
    told(event, HookRun { outcome: HookOutcome::Skipped, detail: reason.to_owned(), ..run })
}

/// A directory that is not there has failed; one that must not be used is passed over, as a program is.
fn unusable_run(event: &Event, directory: &Path, stage: HookStage, unusable: &Unusable) -> HookRun {
    let outcome = match unusable {
        Unusable::Unreadable(_) => HookOutcome::Failed,
        Unusable::Untrusted(_) => HookOutcome::Skipped,
    };
    let run = run(directory.display().to_string(), HookKind::Directory, stage, Instant::now());
    told(event, HookRun { outcome, detail: unusable.to_string(), ..run })
}

/// Tells the log of a call.
fn told(event: &Event, run: HookRun) -> HookRun {
    let HookRun { name, kind, stage, outcome, duration_ms, detail } = &run;
    let (kind, stage, outcome) = (kind.as_str(), stage.as_str(), outcome.as_str());
    let (operation, snapshot) = (event.operation.as_str(), &event.snapshot_id);
    if run.stage == HookStage::Post && run.has_failed() {
        let problem = "what it froze may be frozen still";
        tracing::error!(operation, %snapshot, hook = name, kind, outcome, ms = duration_ms, detail, problem, "post hook");
    } else if run.outcome == HookOutcome::Ok {
        tracing::info!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    } else {
        tracing::warn!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    }
    run
}

/// Whole milliseconds, rounded up: nothing is told shorter than it was.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
