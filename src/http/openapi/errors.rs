//! The error responses of operations. An operation names the codes that only some operations have, as the description of
//! a response: `snapshot_lost base_lost`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reference::reference;
use crate::api::ErrorCode;
use crate::http::authorization::Access;
use crate::http::paths::{DOCS, DOCS_FILE, OPENAPI};

/// The codes that errors have whatever the operation does; or its user, its token, its body, or what its path names.
const COMMON: [ErrorCode; 17] = [
    ErrorCode::BadRequest,
    ErrorCode::HttpsRequired,
    ErrorCode::Unauthorized,
    ErrorCode::Forbidden,
    ErrorCode::NotFound,
    ErrorCode::BodyTooSlow,
    ErrorCode::BodyTooLarge,
    ErrorCode::UriTooLong,
    ErrorCode::Throttled,
    ErrorCode::HeadersTooLarge,
    ErrorCode::IoError,
    ErrorCode::Internal,
    ErrorCode::ManagerUnavailable,
    ErrorCode::DatabaseUnavailable,
    ErrorCode::PreconditionFailed,
    ErrorCode::RangeNotSatisfiable,
    ErrorCode::InsufficientSpace,
];

/// The paths whose answers need neither a queue nor the database.
const WITHOUT_WORK: [&str; 5] = ["/healthz", "/readyz", OPENAPI, DOCS, DOCS_FILE];

/// The statuses of the errors that an operation can always have.
fn statuses(access: Access, path: &str, has_body: bool) -> Vec<u16> {
    let mut statuses = vec![400, 414, 431, 500];
    if !WITHOUT_WORK.contains(&path) {
        statuses.extend([429, 503]);
    }
    match access {
        Access::Open => {}
        Access::Ticket(_) => statuses.push(403),
        Access::NeedsToken | Access::Needs(_) | Access::NeedsForAll(_) => statuses.extend([401, 403, 502]),
    }
    if has_body {
        statuses.extend([408, 413]);
    }
    statuses
}

/// Completes the responses of an operation.
pub(super) fn complete(operation: &mut Value, access: Access, path: &str) {
    let has_body = operation.get("requestBody").is_some();
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let mut codes: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for status in statuses(access, path, has_body) {
        codes.insert(status, common(status));
    }
    for (status, response) in responses.iter_mut() {
        let Ok(status) = status.parse::<u16>() else { continue };
        // An answer that is no error, such as that of /readyz, or an error.
        if let Some(schema) = response.pointer_mut("/content/application~1json/schema").filter(|_| status >= 400) {
            *schema = json!({"anyOf": [schema, reference("schemas", "Error")]});
        }
        let named = response["description"].as_str().unwrap_or_default().split(' ').map(named).collect();
        let Some(named) = Option::<Vec<ErrorCode>>::from_iter::<Vec<_>>(named) else { continue };
        let all = codes.entry(status).or_default();
        all.extend(named.into_iter().filter(|code| !all.contains(code)).collect::<Vec<_>>());
    }
    for (status, codes) in codes {
        let is_common = codes == common(status);
        let response =
            if is_common { reference("responses", &format!("Error{status}")) } else { response(status, &codes) };
        responses.insert(status.to_string(), response);
    }
}

fn common(status: u16) -> Vec<ErrorCode> {
    COMMON.into_iter().filter(|code| code.status() == status).collect()
}

fn named(text: &str) -> Option<ErrorCode> {
    ErrorCode::ALL.iter().copied().find(|code| code.as_str() == text)
}

/// The components for the statuses that have the same codes in most operations.
pub(super) fn responses() -> Map<String, Value> {
    let statuses = COMMON.iter().map(|code| code.status());
    statuses.map(|status| (format!("Error{status}"), response(status, &common(status)))).collect()
}

fn response(status: u16, codes: &[ErrorCode]) -> Value {
    let lines = codes.iter().map(|code| format!("- `{}`: {}\n", code.as_str(), code.meaning()));
    let header = match status {
        401 => Some("WWW-Authenticate"),
        416 => Some("Content-Range"),
        429 | 503 => Some("Retry-After"),
        _ => None,
    };
    let mut headers = Map::new();
    headers.extend(
        header.map(|name| {
            (name.to_owned(), reference("headers", if status == 416 { "Unsatisfied-Range" } else { name }))
        }),
    );
    json!({
        "description": lines.collect::<String>().trim_end(),
        "headers": headers,
        "content": {"application/json": {"schema": reference("schemas", "Error")}},
        "x-codes": codes,
    })
}
