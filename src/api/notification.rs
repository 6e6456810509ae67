//! The events that webhooks get, and the routes about webhooks. docs/operations.md#notifications has all events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorCode, HookRun, formats};

/// The version of the events. Members may be added without a new one.
pub const NOTIFICATION_SCHEMA: u32 = 1;

/// An event: the body of a request to a webhook.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notification<T> {
    /// The same in each attempt to deliver this event. It also is the header `webhook-id`.
    pub id: String,
    /// What happened, such as `snapshot.created`.
    pub event: String,
    /// When: RFC 3339, UTC.
    pub time: String,
    /// The name of the host.
    pub host: String,
    /// The id of the service, as in its manifests: a host can have several.
    pub exporter: String,
    /// [`NOTIFICATION_SCHEMA`].
    pub schema: u32,
    /// So many earlier events could not be delivered to this webhook and were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    pub data: T,
}

/// Data of `snapshot.created` and `snapshot.deleted`. The members are those of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotEvent {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// When its disks were cloned: RFC 3339, UTC.
    pub created_at: String,
    /// The user that created it.
    pub created_by: String,
    pub consistency: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// When it expires: RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub disks: Vec<EventDisk>,
    /// Of `snapshot.deleted`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<DeletionCause>,
    /// Of `snapshot.deleted`: the user who requested that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<String>,
}

/// A disk of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventDisk {
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// Why a snapshot was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeletionCause {
    /// A user requested it.
    Request,
    /// It had expired.
    Expired,
    /// Another exporter or an administrator had removed its files.
    FilesGone,
}

/// Data of `snapshot.failed`: a creation had begun, and no snapshot exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailureEvent {
    /// Name of the VM.
    pub vm_id: String,
    /// The id that the snapshot would have had.
    pub snapshot_id: String,
    /// The user that requested it; absent if the service ended during the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As in an error of the API; absent if the service ended during the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// What happened, and what to do.
    pub details: String,
}

/// Data of `hook.failed` and `hook.recovered`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookEvent {
    /// `snapshot-create` or `snapshot-delete`.
    pub operation: String,
    pub snapshot_id: String,
    /// Name of the VM.
    pub vm_id: String,
    /// Of `hook.failed`: the failed calls. Of `hook.recovered`: the calls that succeeded at last.
    pub hooks: Vec<HookRun>,
    /// Whether failed post hooks are called again. Until they succeed, the guest may still be frozen.
    pub will_retry: bool,
}

/// Data of `space.low`, `space.recovered`, `repository.unavailable` and `repository.available`. The members are those of
/// the repository's status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepositoryEvent {
    pub id: String,
    /// The name that users gave it, if ovs-agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes that are available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// With fewer available bytes, the space is low.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_space_bytes: Option<u64>,
    /// With fewer available bytes, no snapshot is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_free_bytes: Option<u64>,
    /// Why it is unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Data of `certificate.expiring`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateEvent {
    /// The key of the config that names it.
    pub key: String,
    pub path: String,
    /// When it ends: RFC 3339, UTC.
    pub expires_at: String,
    /// Whole days until then; 0 if it has ended.
    pub days_left: u64,
}

/// Data of `database.damaged` and `database.recovered`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseEvent {
    /// Whether the damaged database was set aside, and a new one is being rebuilt.
    pub rebuilding: bool,
}

/// Data of `notification.test`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestEvent {
    /// The user that tests the webhook.
    pub user: String,
}

/// Which webhooks to test.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(example = json!({"webhook": "alerts"}))]
pub struct TestNotification {
    /// The name of the webhook. Without it, all of them.
    pub webhook: Option<String>,
}

/// The result of a test event for one webhook.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TestedWebhook {
    /// Its name in the config.
    pub name: String,
    /// Whether the receiver accepted the event.
    pub delivered: bool,
    /// What it answered, or why it was not reached.
    pub result: String,
}

/// The state of a webhook.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookStatus {
    /// Its name in the config.
    pub name: String,
    /// Scheme, host and port of its URL.
    pub origin: String,
    /// Events that wait.
    pub queued: u64,
    /// Events that were dropped since the last delivery.
    pub dropped: u64,
    /// The last delivery since the start of the service.
    #[schema(required, value_type = Option<formats::Time>)]
    pub last_success: Option<String>,
    /// The last failed attempt, if no delivery came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<WebhookError>,
    /// Whether the receiver answered 410. It gets no events until the service is reloaded or restarted, or a test succeeds.
    pub disabled: bool,
}

/// A failed attempt.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WebhookError {
    #[schema(value_type = formats::Time)]
    pub at: String,
    pub reason: String,
    /// When the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Time>)]
    pub next_attempt: Option<String>,
}
