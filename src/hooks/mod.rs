//! Hooks: programs in a directory and servers in guests that are called before and after an operation, so that a
//! snapshot can be better than crash-consistent.
//!
//! Both kinds are called before (`pre`) and after (`post`) the operation. Whatever a `pre` hook may have frozen gets
//! its `post` hook.

pub mod directory;
pub mod event;

mod calls;
mod isolated;
pub mod launcher;
mod leftover_processes;
mod output;
mod pending;
mod post;
mod pre;
mod process_env;
mod program;
mod sync;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::sys::trusted_path::Unusable;
pub use calls::milliseconds;
pub use directory::Program;
pub use event::{Event, EventDisk, EventVm, Operation, SyncTarget};
pub use isolated::run_isolated;
pub use launcher::Launcher;
pub use pending::{PendingHooks, PendingPostHooks};
pub use post::PostResult;
pub use pre::{PreResult, Refresh};

use crate::config;
use crate::model::{HookKind, HookRun, HookStage, VmId};
use calls::Call;
use event::CallReason;

/// The hooks that the config names.
pub struct Hooks {
    config: config::Hooks,
    sync: Option<sync::Client>,
    launcher: Launcher,
    /// The service is stopping.
    cancel_pre_hooks: CancellationToken,
}

impl Hooks {
    /// # Errors
    /// The certificates to verify the guests' servers with cannot be read.
    pub fn new(config: config::Hooks) -> io::Result<Self> {
        let sync = match &config.sync {
            Some(sync) => {
                if sync.trust == config::Trust::InsecureSkipVerify {
                    tracing::warn!(
                        "hooks.sync.insecure_skip_verify: certificates of guests are not verified; the secret can be \
                         intercepted"
                    );
                }
                Some(sync::Client::new(sync)?)
            }
            None => None,
        };
        Ok(Self { config, sync, launcher: Launcher::InProcess, cancel_pre_hooks: CancellationToken::new() })
    }

    /// Lets `launcher` run the programs.
    #[must_use]
    pub fn with_launcher(self, launcher: Launcher) -> Self {
        Self { launcher, ..self }
    }

    /// Where the sync server of `vm` is, if it has one. `labels` are searched for its tag; `address` is the guest's, if
    /// the definition names it.
    pub fn sync_target(&self, vm: &VmId, labels: &[&str], address: Option<&str>) -> Option<SyncTarget> {
        sync::target(self.config.sync.as_ref()?, vm, labels, address)
    }

    /// What has to be stored before the hooks of `event` are called; `None` if there are no hooks. Reads the directory.
    pub fn pending_post_hooks(&self, event: Event) -> Option<PendingPostHooks> {
        if self.config.directory.is_none() && event.sync.is_none() {
            return None;
        }
        Some(PendingPostHooks {
            hooks: self.all_hooks(&event),
            event,
            earlier: Vec::new(),
            succeeded: false,
            attempts: 0,
            failing_since_ms: None,
            reported: false,
            call_prefix: uuid::Uuid::new_v4().to_string(),
            finished: Vec::new(),
        })
    }

    /// All hooks of `event`; `None` if the directory cannot be read.
    fn all_hooks(&self, event: &Event) -> Option<PendingHooks> {
        let mut programs = Vec::new();
        if let Some(directory) = &self.config.directory {
            let found = directory::programs(directory).ok()?.into_iter();
            programs.extend(found.filter(|program| program.problem.is_none()).map(|program| program.name));
        }
        Some(PendingHooks { programs, server: matches!(event.sync, Some(SyncTarget::Url(_))) })
    }

    /// How long the operation between pre and post hooks may take while the guest may be frozen.
    pub fn step_timeout(&self) -> Duration {
        self.config.timeout
    }

    /// How long it takes at most from the end of a pre hook until the guest is thawed: the operation, a post hook of
    /// each kind, and killing what hangs.
    pub fn max_frozen_duration(&self) -> Duration {
        let server = self.config.sync.as_ref().map_or(Duration::ZERO, |sync| sync.timeout);
        2 * self.config.timeout + server + 3 * program::MAX_KILL_DURATION
    }

    /// A token with which the pre hooks of one operation, or of a group, can be cancelled.
    /// [`Hooks::cancel_pre_hooks`] cancels it too.
    pub fn cancellation(&self) -> CancellationToken {
        self.cancel_pre_hooks.child_token()
    }

    /// Cancels running pre hooks, so that the service can stop.
    pub fn cancel_pre_hooks(&self) {
        self.cancel_pre_hooks.cancel();
    }
}

/// Calls a program. Also returns whether it printed `quiesced`.
async fn call(
    launcher: &Launcher,
    program: &Path,
    pending: &PendingPostHooks,
    reason: CallReason,
    deadline: Instant,
    cancel: &CancellationToken,
) -> (Call, bool) {
    let (id, started) = (calls::next_id(&pending.call_prefix), Instant::now());
    let result = launcher.call(program, &pending.event, &id, reason, deadline, cancel).await;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run = calls::run(name, HookKind::Directory, reason.stage(), started);
    let quiesced = result.quiesced();
    let run = HookRun { outcome: result.outcome, detail: result.detail, ..run };
    (Call { run, output: result.output, id: Some(id) }, quiesced)
}

/// Calls a server.
async fn ask(client: &sync::Client, url: &str, stage: HookStage, reached: &sync::Reached) -> Call {
    let request = match stage {
        HookStage::Pre => sync::Request::Sync,
        HookStage::Post => sync::Request::PostSync,
    };
    let started = Instant::now();
    let answer = client.ask(url, request, reached).await;
    let run = calls::run(url.to_owned(), HookKind::Sync, stage, started);
    Call { run: HookRun { outcome: answer.outcome, detail: answer.detail, ..run }, output: Vec::new(), id: None }
}

#[cfg(test)]
mod tests;
