//! The handler of test events for webhooks.

use std::sync::Arc;

use axum::extract::State;

use super::create_body::object;
use super::extract::{Authenticated, SmallBody};
use super::failure::Failure;
use super::json::Json;
use crate::api;
use crate::app::App;

/// Sends a test event to webhooks, and waits for their answers.
///
/// The event is `notification.test`. It goes to the webhook of this name, or without a body to all of them. It is sent once,
/// before events that wait.
#[utoipa::path(
    post, path = "/api/v1/notifications/test", tag = "Service", operation_id = "testNotifications",
    request_body = Option<api::TestNotification>,
    responses(
        (status = 200, description = "The result for each webhook.", body = Vec<api::TestedWebhook>),
        (status = 404, description = "not_found"),
    ),
)]
pub(super) async fn test(
    State(app): State<Arc<App>>,
    Authenticated(session): Authenticated,
    SmallBody(bytes): SmallBody,
) -> Result<Json<Vec<api::TestedWebhook>>, Failure> {
    let body: api::TestNotification = match bytes.trim_ascii() {
        b"" => api::TestNotification::default(),
        bytes => object(bytes, "it may be empty, or an object with webhook")?,
    };
    Ok(Json(app.operator.notifications.test(&session, body.webhook.as_deref()).await?))
}
