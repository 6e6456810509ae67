//! One file a journey: the order of steps lives here, and nowhere else.
//!
//! Every journey but the log-in takes a `Session`, which only a good token yields. What blocks
//! (files, the database) runs through `App::blocking`, and nowhere else.

pub mod admission;
pub mod audit;
pub mod compare;
pub mod error;
pub mod export;
pub mod file_cache;
pub mod files;
pub mod hooks;
pub mod inventory;
pub mod ops;
pub mod retention;
pub mod session;
pub mod snapshots;

use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use crate::auth::{self, Authenticator, Tokens};
use crate::config::{self, Config, ConfigError, Policy};
use crate::metrics::Metrics;
use crate::model::retention::Watch;
use crate::model::{RepositoryId, Snapshot, SnapshotId, VmId};
use crate::repository::{CloneSupport, Repository};
use crate::store::Store;
use crate::sys::host;

use admission::queue::AdmissionQueue;
use admission::vm_locks::VmLocks;
use compare::refined_cache::RefinedCache;
pub use error::Error;
use export::audit_trail::AuditTrail;
use export::checksum::ChecksumCache;
use export::slot::Export;
use files::touched::Touched;
use hooks::pending::Unwritten;
use inventory::catalog::{Catalog, Unknown};
use inventory::list_vms::Listing;
use inventory::repositories::Repositories;
use inventory::shared::Shared;
use ops::start_faults;
use ops::status::Creation;
use retention::uses::{InUse, SnapshotUses};
use session::login::ManagerAddress;
use snapshots::gone::Deleted;
use snapshots::recover::Leftovers;
use snapshots::unknown::UnknownSnapshots;

/// The service without its network side.
pub struct App {
    repositories: Repositories,
    catalog: Catalog,
    listings: Shared<Result<Arc<Listing>, Unknown>>,
    clone_support: CloneSupport,
    store: Store,
    manager: Authenticator,
    manager_address: ManagerAddress,
    hooks: crate::hooks::Hooks,
    metrics: Metrics,
    tokens: Tokens,
    token_lifetime: Duration,
    vm_locks: VmLocks,
    checksums: ChecksumCache,
    leftovers: Leftovers,
    compare: config::Compare,
    refined_cache: RefinedCache,
    policy: Policy,
    creations: AdmissionQueue<Creation>,
    exports: AdmissionQueue<Export>,
    uses: SnapshotUses,
    /// Whether disks are read when nobody else wants to.
    idle_io: bool,
    /// Slower clients are cut while others wait; bytes a second.
    min_rate: Option<NonZero<u64>>,
    trail: AuditTrail,
    /// What expires when.
    watch: Mutex<Watch>,
    /// For one at a time who asks what snapshots cost.
    usage_gate: Arc<Semaphore>,
    started: Instant,
    /// Journeys that go on when the client hangs up.
    detached: TaskTracker,
    /// What they run in: connections have runtimes of their own, which end with them.
    runtime: Handle,
    /// What hooks may hold: between a `pre` and the end of its `post`.
    held: TaskTracker,
    /// What this service calls itself in manifests.
    exporter: String,
    unknown_snapshots: UnknownSnapshots,
    deleted: Deleted,
    touched: Touched,
    /// What of the hooks' debts the database would not take.
    unwritten: Unwritten,
}

impl App {
    /// The service as `config` describes it, with all that a crash left half done cleaned up. It counts in
    /// `metrics`.
    ///
    /// # Errors
    /// What keeps it from starting, in words for an operator.
    pub async fn start(config: &Config, metrics: Metrics) -> anyhow::Result<Arc<Self>> {
        let repositories = Repositories::new(&config.repositories)?;
        let misplaced = start_faults::files_in_repositories(config, &repositories.found());
        for fault in &misplaced {
            tracing::warn!(key = fault.key, remedy = fault.remedy, "{}", fault.found);
        }
        if let Some(fault) = start_faults::key_in_repository(config, &misplaced) {
            return Err(fault.into());
        }
        let store = Store::open(&config.db_file).map_err(|error| start_faults::database(&config.db_file, &error))?;
        // Behind the database: who has that is alone in making a key.
        let key = auth::key::find_or_make(config).map_err(|error| start_faults::key(&error))?;
        let app = Self {
            repositories,
            catalog: Catalog::default(),
            listings: Shared::default(),
            clone_support: CloneSupport::default(),
            store,
            manager: Authenticator::new(&config.manager)
                .map_err(|error| ConfigError::new(format!("manager: {error}")))?,
            manager_address: ManagerAddress::new(config)?,
            hooks: crate::hooks::Hooks::new(config.hooks.clone())
                .map_err(|error| ConfigError::new(format!("hooks.sync: {error}")))?,
            metrics,
            tokens: Tokens::new(&key, config.jwt.time_to_live),
            token_lifetime: config.jwt.time_to_live,
            vm_locks: VmLocks::default(),
            checksums: ChecksumCache::default(),
            leftovers: Leftovers::default(),
            compare: config.compare,
            refined_cache: RefinedCache::default(),
            policy: config.policy,
            creations: AdmissionQueue::new(config.policy.snapshot_concurrency, snapshots::admit::QUEUE),
            exports: AdmissionQueue::fair(config.policy.export_concurrency, export::slot::QUEUE),
            uses: SnapshotUses::default(),
            idle_io: config.export.is_idle,
            min_rate: config.export.min_rate,
            trail: AuditTrail::default(),
            watch: Mutex::new(Watch::new(config.policy.superseded_grace)),
            usage_gate: Arc::new(Semaphore::new(1)),
            started: Instant::now(),
            detached: TaskTracker::new(),
            runtime: Handle::current(),
            held: TaskTracker::new(),
            unknown_snapshots: UnknownSnapshots::default(),
            deleted: Deleted::default(),
            touched: Touched::default(),
            exporter: host::service_id(&config.db_file),
            unwritten: Unwritten::default(),
        };
        let app = Arc::new(app);
        // First of all: something may be frozen.
        app.call_owed_hooks().await?;
        app.clean_up_after_start().await;
        app.prove_manager().await?;
        Ok(app)
    }

    /// The maker and checker of tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// How long a token is good for.
    pub fn token_lifetime(&self) -> Duration {
        self.token_lifetime
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Lets hooks hold up the service's end no longer: what they were to come before is refused, or
    /// done without them, as the config has it.
    pub fn cancel_pre_hooks(&self) {
        self.hooks.cancel_pre_hooks();
    }

    /// Waits for the journeys that outlive their clients.
    pub async fn finish(&self) {
        self.detached.close();
        self.detached.wait().await;
    }

    /// Runs `work`, which blocks, where it holds up nobody. The one crossing from async code, but for the
    /// next.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let app = Arc::clone(self);
        let span = tracing::Span::current();
        let done = self.runtime.spawn_blocking(move || span.in_scope(|| work(&app))).await;
        done.unwrap_or_else(|panic| Err(Error::Internal(panic.to_string())))
    }

    /// The same, and at once where the caller is a connection with a thread of its own: work that is short,
    /// or that nobody but that connection waits for.
    async fn run_inline_or_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if on_own_thread() { work(self) } else { self.blocking(work).await }
    }

    /// Runs `journey` to its end even if the client, and with it the caller, goes away.
    async fn detached<T: Send + 'static>(
        &self,
        journey: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        use tracing::Instrument;
        let done = self.detached.spawn_on(journey.in_current_span(), &self.runtime).await;
        done.unwrap_or_else(|panic| Err(Error::Internal(panic.to_string())))
    }

    fn repository(&self, id: &RepositoryId) -> Option<Repository> {
        self.repositories.get(id)
    }

    /// Keeps the snapshot `id` from being swept while a client works on it. To be called before its record is
    /// looked at.
    ///
    /// # Errors
    /// [`Error::NotFound`] where it is being swept; [`Error::Store`].
    fn hold(&self, id: SnapshotId) -> Result<InUse, Error> {
        let held = self.uses.hold(id);
        let mut held = held.ok_or(Error::NotFound("the snapshot has expired and is being deleted"))?;
        if self.store.snapshot(id)?.is_none() {
            held.names_nothing();
        }
        Ok(held)
    }

    /// The complete snapshot `id` of the VM that `vm_ref` names.
    fn snapshot_of(&self, vm_ref: &VmId, id: SnapshotId) -> Result<Snapshot, Error> {
        let Some(snapshot) = self.store.snapshot(id)? else {
            self.resolve_vm(vm_ref)?;
            return Err(Error::NotFound("the VM has no such snapshot"));
        };
        // The definitions are read only where the name is not the plain one: bytes are asked for
        // thousands of times a second.
        if snapshot.vm != *vm_ref && self.resolve_vm(vm_ref)? != snapshot.vm {
            return Err(Error::OtherVm(id));
        }
        Ok(snapshot)
    }
}

/// The rounds of what is done now and then: the first at once, and after a late one a whole pause again.
fn rounds(pause: Duration) -> Interval {
    let mut rounds = tokio::time::interval(pause);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

/// Whether this is the thread of a connection, which has a runtime for itself.
fn on_own_thread() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}
