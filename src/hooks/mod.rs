//! What is called around an operation, so that a snapshot is more than what a power cut leaves.
//!
//! One model, two kinds: programs in a directory, and servers in the guests. Each is called before
//! (`pre`) and after (`post`), and what a `pre` may have frozen gets its `post`.

pub mod directory;
pub mod event;

mod after;
mod before;
mod calls;
mod isolated;
mod leftover_processes;
mod output;
mod pending;
mod program;
mod sync;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use after::Ended;
pub use before::{Begun, Refresh};
pub use calls::{PastCall, milliseconds};
pub use directory::{Program, Unusable};
pub use event::{Event, EventDisk, EventVm, Operation, SyncTarget};
pub use isolated::run_isolated;
pub use pending::{PendingHooks, PendingPostHooks};

use crate::config;
use crate::model::{HookKind, HookRun, HookStage, VmId};
use calls::Call;

/// All hooks of the service.
pub struct Hooks {
    config: config::Hooks,
    sync: Option<sync::Client>,
    /// The service stops: nothing new is waited for.
    cancel_pre_hooks: CancellationToken,
}

impl Hooks {
    /// The hooks that `config` names.
    ///
    /// # Errors
    /// The certificates to verify the guests' servers with cannot be read.
    pub fn new(config: config::Hooks) -> io::Result<Self> {
        let sync = match &config.sync {
            Some(sync) => {
                if sync.trust == config::Trust::InsecureSkipVerify {
                    tracing::warn!("hooks.sync.insecure_skip_verify: the secret goes to whoever answers");
                }
                Some(sync::Client::new(sync)?)
            }
            None => None,
        };
        Ok(Self { config, sync, cancel_pre_hooks: CancellationToken::new() })
    }

    /// Where the sync server of `vm` is, if it is to be asked. `labels` are where its tag may stand;
    /// `address` is the guest's, where the definition names it.
    pub fn sync_target(&self, vm: &VmId, labels: &[&str], address: Option<&str>) -> Option<SyncTarget> {
        sync::target(self.config.sync.as_ref()?, vm, labels, address)
    }

    /// What is to be written down before `event`, where anything is called around it. This reads the
    /// directory.
    pub fn debt(&self, event: Event) -> Option<PendingPostHooks> {
        if self.config.directory.is_none() && event.sync.is_none() {
            return None;
        }
        let owed = self.all(&event);
        let (id, earlier, past) = (uuid::Uuid::new_v4().to_string(), Vec::new(), Vec::new());
        Some(PendingPostHooks { event, owed, earlier, done: false, attempts: 0, id, past })
    }

    /// All that may be called around `event`; nothing where the directory cannot be looked into.
    fn all(&self, event: &Event) -> Option<PendingHooks> {
        let mut programs = Vec::new();
        if let Some(directory) = &self.config.directory {
            let found = directory::programs(directory).ok()?.into_iter();
            programs.extend(found.filter(|program| program.problem.is_none()).map(|program| program.name));
        }
        Some(PendingHooks { programs, server: matches!(event.sync, Some(SyncTarget::Url(_))) })
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
    pub fn cancel_pre_hooks(&self) {
        self.cancel_pre_hooks.cancel();
    }
}

/// Calls one program: before the operation, or after it, which then is `done` or has failed. Says too whether
/// it said `quiesced`.
async fn call(
    program: &Path,
    debt: &PendingPostHooks,
    done: Option<bool>,
    deadline: Instant,
    cancel_pre_hooks: &CancellationToken,
) -> (Call, bool) {
    let (stage, id) = (if done.is_none() { HookStage::Pre } else { HookStage::Post }, calls::next_id(&debt.id));
    let started = Instant::now();
    let message = debt.event.message(stage, done);
    let ended = program::call(program, &debt.event, &id, stage, message, deadline, cancel_pre_hooks).await;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run = calls::run(name, HookKind::Directory, stage, started);
    let quiesced = ended.quiesced();
    let run = HookRun { outcome: ended.outcome, detail: ended.detail, ..run };
    (Call { run, said: ended.said, id: Some(id) }, quiesced)
}

/// Asks one server.
async fn ask(client: &sync::Client, url: &str, stage: HookStage, reached: &sync::Reached) -> Call {
    let request = match stage {
        HookStage::Pre => sync::Request::Sync,
        HookStage::Post => sync::Request::PostSync,
    };
    let started = Instant::now();
    let answer = client.ask(url, request, reached).await;
    let run = calls::run(url.to_owned(), HookKind::Sync, stage, started);
    Call { run: HookRun { outcome: answer.outcome, detail: answer.detail, ..run }, said: Vec::new(), id: None }
}

#[cfg(test)]
mod tests;
