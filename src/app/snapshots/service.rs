//! The dependencies of creation and deletion.

use std::sync::Arc;

use super::notice::Noticing;
use super::reconcile::Reconciler;
use super::removal::Removals;
use crate::app::admission::Admission;
use crate::app::audit::AuditTrail;
use crate::app::common::Common;
use crate::app::hooks::HookRunner;
use crate::app::inventory::Inventory;
use crate::app::notifications::Notifications;
use crate::app::retention::Retention;
use crate::app::tasks::{Service, Tasks};
use crate::metrics::Metrics;
use crate::store::Store;

/// Creates and deletes snapshots.
pub struct Snapshots {
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) retention: Arc<Retention>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) notifications: Arc<Notifications>,
    pub(crate) trail: Arc<AuditTrail>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Store,
    pub(crate) hooks: Arc<HookRunner>,
    pub(crate) removals: Arc<Removals>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) noticing: Arc<Noticing>,
    /// The id of this service in manifests.
    pub(crate) exporter: String,
    pub(crate) tasks: Tasks,
}

impl Service for Snapshots {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Snapshots {
    /// Takes what other exporters have done in the repositories into the database, within a bounded time.
    pub async fn look_for_others(&self) {
        self.noticing.look_soon().await;
    }

    pub(crate) fn new(
        common: &Common,
        hooks: Arc<HookRunner>,
        removals: Arc<Removals>,
        reconciler: Arc<Reconciler>,
        noticing: Arc<Noticing>,
    ) -> Self {
        let Common { exporter, inventory, retention, admission, notifications, trail, metrics, store, tasks } =
            common.clone();
        Self {
            inventory,
            retention,
            admission,
            notifications,
            trail,
            metrics,
            store,
            hooks,
            removals,
            reconciler,
            noticing,
            exporter,
            tasks,
        }
    }
}
