//! Wires the services and starts their background tasks.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::admission::Admission;
use crate::app::audit::{self, AuditTrail};
use crate::app::changeable::Changeable;
use crate::app::common::Common;
use crate::app::compare::Comparisons;
use crate::app::confinement::Confinement;
use crate::app::database::Database;
use crate::app::export::{Checksums, Exports};
use crate::app::files::FileOpener;
use crate::app::hooks::{HookRunner, PendingHooks};
use crate::app::inventory::{Inventory, Repositories};
use crate::app::notifications::Notifications;
use crate::app::ops::{Conditions, Observed, Ops, Warnings, log_audit_head, start_faults};
use crate::app::retention::Retention;
use crate::app::session::{ManagerAddress, Sessions};
use crate::app::snapshots::{Adopter, Documents, Noticing, Reconciler, Recovery, Removals, Snapshots, Sweeper};
use crate::app::tasks::Tasks;
use crate::app::tickets::Tickets;
use crate::app::{Error, Opened};
use crate::auth::{AuditKey, Authenticator, LoginError};
use crate::config::{self, Compare, Config, ConfigError, Export, Fault, Login, Policy};
use crate::hooks::{Hooks, Launcher};
use crate::metrics::Metrics;
use crate::model::AccessRules;
use crate::store::Store;
use crate::sys::host;

/// The service without its network side.
pub struct App {
    pub metrics: Arc<Metrics>,
    pub trail: Arc<AuditTrail>,
    pub sessions: Arc<Sessions>,
    pub inventory: Arc<Inventory>,
    pub retention: Arc<Retention>,
    pub files: Arc<FileOpener>,
    pub comparisons: Arc<Comparisons>,
    pub exports: Arc<Exports>,
    pub checksums: Arc<Checksums>,
    pub snapshots: Arc<Snapshots>,
    pub documents: Arc<Documents>,
    pub tickets: Arc<Tickets>,
    pub operator: Operator,
}

/// The services for operators and for background tasks.
pub struct Operator {
    pub ops: Arc<Ops>,
    pub adopter: Arc<Adopter>,
    pub database: Arc<Database>,
    pub warnings: Arc<Warnings>,
    pub notifications: Arc<Notifications>,
    conditions: Arc<Conditions>,
    recovery: Arc<Recovery>,
}

impl App {
    /// Starts the service: calls pending post hooks, and cleans up what a crash left unfinished.
    ///
    /// # Errors
    /// Every error is written for operators.
    pub async fn start(
        config: &Config,
        metrics: Metrics,
        opened: Opened,
        confined: (Arc<Confinement>, Launcher),
    ) -> anyhow::Result<Arc<Self>> {
        let app = Arc::new(Self::wire(config, Arc::new(metrics), opened, confined)?);
        // First, because a guest may be frozen.
        app.snapshots.hooks.pending.call_after_start().await?;
        app.operator.recovery.run_after_start().await;
        // Before requests are answered, if that is possible soon.
        app.snapshots.noticing.look_at_start().await;
        app.operator.database.rebuild_after_start().await?;
        app.prove_manager().await?;
        Ok(app)
    }

    fn wire(
        config: &Config,
        metrics: Arc<Metrics>,
        Opened { repositories, store, key }: Opened,
        (confinement, launcher): (Arc<Confinement>, Launcher),
    ) -> anyhow::Result<Self> {
        // A thread of the repository does this.
        let repositories = repositories.without_folders()?;
        if let Some(Fault { key, found, remedy, .. }) = start_faults::forgotten_users(&config.access) {
            tracing::warn!(key, remedy, "{found}");
        }
        audit::start(AuditKey::new(&key));
        let authenticator = Authenticator::new(&config.manager);
        let authenticator = authenticator.map_err(|error| ConfigError::new(format!("manager: {error}")))?;
        let address = ManagerAddress::new(config)?;
        let hooks = Hooks::new(config.hooks.clone());
        let hooks = hooks.map_err(|error| ConfigError::new(format!("hooks.sync: {error}")))?.with_launcher(launcher);

        let export = Changeable::new(config.export);
        let common = Self::wire_common(config, export.clone(), metrics, store, repositories)?;
        // Tells the reconciler that files have disappeared.
        let gone = Arc::new(Notify::new());

        let sessions = Arc::new(Sessions::new(&common, authenticator, address, &key, config)?);
        let tickets = Arc::new(Tickets::new(&common, Arc::clone(&sessions)));
        let exports = Exports::new(&common, Arc::clone(&sessions), Arc::clone(&tickets), export);
        let files = Arc::new(FileOpener::new(&common, Arc::clone(&gone)));
        let pending = Arc::new(PendingHooks::new(&common, hooks));
        let hooks = Arc::new(HookRunner::new(&common, Arc::clone(&pending)));
        let comparisons = Arc::new(Comparisons::new(&common, Arc::clone(&files), config.compare));
        let removals =
            Arc::new(Removals::new(&common, Arc::clone(&comparisons), Arc::clone(&files), config.repositories.shared));
        let recovery = Arc::new(Recovery::new(&common, Arc::clone(&removals)));
        let reconciler = Arc::new(Reconciler::new(&common, Arc::clone(&files), Arc::clone(&removals), gone));
        let adopter = Arc::new(Adopter::new(&common, Arc::clone(&files), Arc::clone(&reconciler)));
        let noticing =
            Arc::new(Noticing::new(&common, Arc::clone(&adopter), Arc::clone(&reconciler), config.repositories.shared));
        let database = Arc::new(Database::new(&common, Arc::clone(&adopter), config.db_rebuild));
        let warnings = Arc::new(Warnings::new(config, Arc::clone(&common.metrics)));
        let conditions = Conditions::new(&common, Arc::clone(&database), Arc::clone(&warnings));
        let observed = Observed {
            hooks: pending,
            recovery: Arc::clone(&recovery),
            reconciler: Arc::clone(&reconciler),
            database: Arc::clone(&database),
            sessions: Arc::clone(&sessions),
            confinement,
            warnings: Arc::clone(&warnings),
        };
        let operator = Operator {
            ops: Arc::new(Ops::new(&common, observed, Arc::clone(&files))),
            adopter,
            database,
            warnings,
            notifications: Arc::clone(&common.notifications),
            conditions: Arc::new(conditions),
            recovery,
        };
        Ok(Self {
            checksums: Arc::new(Checksums::new(&common, Arc::clone(&files))),
            documents: Arc::new(Documents::new(&common, Arc::clone(&comparisons))),
            snapshots: Arc::new(Snapshots::new(&common, hooks, removals, reconciler, noticing)),
            exports: Arc::new(exports),
            sessions,
            files,
            comparisons,
            tickets,
            operator,
            inventory: common.inventory,
            retention: common.retention,
            metrics: common.metrics,
            trail: common.trail,
        })
    }

    fn wire_common(
        config: &Config,
        export: Changeable<Export>,
        metrics: Arc<Metrics>,
        store: Store,
        repositories: Repositories,
    ) -> anyhow::Result<Common> {
        let (exporter, tasks, trail) =
            (host::service_id(&config.db_file), Tasks::new(), Arc::new(AuditTrail::default()));
        let inventory = Arc::new(Inventory::new(repositories, store.clone(), tasks.clone()));
        let (id, s, m, t) = (exporter.clone(), store.clone(), Arc::clone(&metrics), tasks.clone());
        let notifications = Notifications::new(&config.notifications, id, s, m, t);
        let notifications = notifications.map_err(|error| ConfigError::new(format!("notifications: {error}")))?;
        let kept = (config.policy.superseded_grace, config.repositories.shared);
        let retention = Retention::new(Arc::clone(&inventory), store.clone(), kept, Arc::clone(&trail), tasks.clone());
        let admission = Admission::new(config, export, &inventory, store.clone(), tasks.clone());
        Ok(Common {
            exporter,
            retention: Arc::new(retention),
            admission: Arc::new(admission),
            notifications: Arc::new(notifications),
            inventory,
            trail,
            metrics,
            store,
            tasks,
        })
    }

    /// Checks that the manager refuses requests without credentials. If it accepts them, anyone could log in, so the
    /// service does not start.
    async fn prove_manager(&self) -> anyhow::Result<()> {
        match self.sessions.prove_manager().await {
            Ok(()) => Ok(()),
            Err(error @ LoginError::NoPasswordRequired(_)) => Err(start_faults::manager(&error).into()),
            Err(error) => {
                let Fault { key, found, remedy, .. } = start_faults::manager(&error);
                tracing::warn!(key, remedy, "log-in is not possible: {found}");
                Ok(())
            }
        }
    }

    /// Replaces the access rules. They apply to the next request of each user, and end downloads that they no longer
    /// permit.
    pub fn set_access(&self, rules: AccessRules) {
        let rules = Arc::new(rules);
        self.sessions.set_access(Arc::clone(&rules));
        self.exports.set_access(rules);
    }

    /// Replaces the limits and the defaults of the config. Work that runs keeps those that it began with.
    pub fn set_limits(&self, policy: Policy, export: Export, compare: Compare, login: Login) {
        self.snapshots.admission.set_limits(policy, export);
        self.retention.set_grace(policy.superseded_grace);
        self.comparisons.set_config(compare);
        self.sessions.set_limits(login);
    }

    /// Uses other webhooks from now on, until `stop`.
    ///
    /// # Errors
    /// The certificate of a webhook cannot be used; the current webhooks stay in use.
    pub fn set_notifications(&self, config: &config::Notifications, stop: &CancellationToken) -> std::io::Result<()> {
        let added = self.operator.notifications.set(config, stop)?;
        self.operator.conditions.look_soon(added);
        Ok(())
    }

    /// Starts the background tasks. They end after `stop`. The service must wait for the returned ones before it exits.
    pub fn run_in_background(&self, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let Snapshots { admission, hooks, reconciler, noticing, tasks, .. } = &*self.snapshots;
        tasks.spawn(Arc::clone(admission).release_hung_slots(stop.clone()));
        tasks.spawn(Arc::clone(admission).disconnect_slow_clients(stop.clone()));
        tasks.spawn(Arc::clone(&self.exports).write_audit(stop.clone()));
        tasks.spawn(Arc::clone(reconciler).run(stop.clone()));
        tasks.spawn(Arc::clone(noticing).run(stop.clone()));
        tasks.spawn(log_audit_head(stop.clone()));
        tasks.spawn(Arc::clone(&self.operator.warnings).run(stop.clone()));
        self.operator.notifications.start(stop);
        tasks.spawn(Arc::clone(&self.operator.conditions).run(stop.clone()));
        vec![
            tasks.spawn(Sweeper(Arc::clone(&self.snapshots)).run(stop.clone())),
            tasks.spawn(Arc::clone(&self.operator.recovery).run(stop.clone())),
            tasks.spawn(Arc::clone(&self.operator.database).run(stop.clone())),
            tasks.spawn(Arc::clone(&hooks.pending).run(stop.clone())),
        ]
    }

    /// Starts to read the state for the metrics, until `stop`.
    pub fn measure_in_background(&self, stop: &CancellationToken) {
        self.snapshots.tasks.spawn(Arc::clone(&self.operator.ops).measure(stop.clone()));
    }

    /// Cancels running `pre` hooks, because they would delay the shutdown. Their operations are refused, or continue
    /// without them, as the config says.
    pub fn cancel_pre_hooks(&self) {
        self.snapshots.hooks.hooks.cancel_pre_hooks();
    }

    /// Waits for the operations that run to their end without their client.
    pub async fn finish(&self) {
        self.snapshots.tasks.finish().await;
    }

    /// Waits until no guest is frozen, within a bounded time. Returns how many operations still have pending post
    /// hooks.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn release_guests(&self) -> Result<usize, Error> {
        self.snapshots.hooks.pending.release_guests().await
    }
}
