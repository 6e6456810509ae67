//! What most services use.

use std::sync::Arc;

use crate::app::admission::Admission;
use crate::app::audit::AuditTrail;
use crate::app::inventory::Inventory;
use crate::app::notifications::Notifications;
use crate::app::retention::Retention;
use crate::app::tasks::Tasks;
use crate::metrics::Metrics;
use crate::store::Store;

/// The services below the others, and the places where all of them record what they do. A service takes what it needs.
#[derive(Clone)]
pub(crate) struct Common {
    /// The id of this service in manifests and events.
    pub(crate) exporter: String,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) retention: Arc<Retention>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) notifications: Arc<Notifications>,
    pub(crate) trail: Arc<AuditTrail>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Store,
    pub(crate) tasks: Tasks,
}
