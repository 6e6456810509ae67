//! Completes the document with what the operations have in common: who may use them, headers, errors, and the operations
//! that share a handler with others.

use serde_json::{Map, Value, json};

use super::reference::reference;
use super::{Route, errors, links, schemas};
use crate::http::authorization::Access;
use crate::http::paths::{CHUNKS, DISK, DOCS, DOCS_FILE, OPENAPI, TICKET_CHUNKS, TICKET_DISK};
use crate::model::{Permission, Role};

/// The headers that each response has.
const HEADERS: [&str; 3] = ["X-Request-Id", "Cache-Control", "X-Content-Type-Options"];

/// The headers of the bytes of a disk.
const DISK_HEADERS: [&str; 3] = ["Accept-Ranges", "ETag", "Last-Modified"];

pub(super) fn complete(document: &mut Value, routes: &[Route]) {
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for (of, path, whose) in [(DISK, TICKET_DISK, "The bytes"), (CHUNKS, TICKET_CHUNKS, "The chunks")] {
        let item = paths[of].clone();
        paths.insert(path.to_owned(), by_ticket(item, &format!("{whose} of a disk, for a ticket.")));
    }
    let mut operations = Vec::new();
    for (path, item) in paths.iter_mut() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let name = if method == "head" { "GET" } else { &*method.to_ascii_uppercase() };
            let Some((_, _, access)) = routes.iter().find(|(at, of, _)| at == path && *of == name) else { continue };
            admit(operation, *access);
            errors::complete(operation, *access, path);
            add_headers(operation, path);
            if method == "head" {
                head(operation);
            }
            if let Some(id) = operation["operationId"].as_str() {
                operations.push((id.to_owned(), operation));
            }
        }
    }
    let mut operations: Vec<_> = operations.iter_mut().map(|(id, operation)| (&**id, &mut **operation)).collect();
    links::add(&mut operations);
    document["security"] = json!([{"token": []}, {"basic": []}, {"certificate": []}]);
    let components = &mut document["components"];
    components["securitySchemes"] = security_schemes();
    components["headers"] = headers();
    let mut errors = errors::responses();
    errors.values_mut().for_each(add_standard_headers);
    components["responses"] = Value::Object(errors);
    if let Some(of) = components["schemas"].as_object_mut() {
        schemas::complete(of);
    }
    join_lines(document);
}

/// Joins the lines of comments: some viewers show each line end.
fn join_lines(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get_mut("description") {
                let paragraphs = text.split("\n\n").map(|paragraph| {
                    if paragraph.starts_with(['|', '-']) { paragraph.to_owned() } else { paragraph.replace('\n', " ") }
                });
                *text = paragraphs.collect::<Vec<_>>().join("\n\n");
            }
            members.values_mut().for_each(join_lines);
        }
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        _ => {}
    }
}

/// Says who may use an operation.
fn admit(operation: &mut Value, access: Access) {
    let least = |permission: Permission| {
        let role = Role::ALL.into_iter().find(|role| role.permits(permission));
        role.map_or("admin", Role::as_str)
    };
    let rule = match access {
        Access::Open => "Needs no token.".to_owned(),
        Access::NeedsToken => "Needs a valid token; its user needs no role.".to_owned(),
        Access::Needs(permission) => format!("Needs the role `{}`.", least(permission)),
        Access::NeedsForAll(permission) => format!("Needs the role `{}`, for all VMs.", least(permission)),
        Access::Ticket(_) => {
            "Needs no token: the path has the secret of a ticket, whose user needs the role `reader`.".to_owned()
        }
    };
    let text = operation["description"].as_str().unwrap_or_default();
    operation["description"] = json!(format!("{text}\n\n{rule}").trim_start());
    if matches!(access, Access::Open | Access::Ticket(_)) {
        operation["security"] = json!([]);
    }
}

fn add_headers(operation: &mut Value, path: &str) {
    let (is_disk, is_ticket) = ([DISK, TICKET_DISK].contains(&path), path.starts_with("/t/"));
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if response.get("$ref").is_some() {
            continue;
        }
        add_standard_headers(response);
        let mut more: Vec<&str> = Vec::new();
        if [OPENAPI, DOCS, DOCS_FILE].contains(&path) && ["200", "304"].contains(&status.as_str()) {
            response["headers"]["Cache-Control"] = reference("headers", "Cache-Control-Of-Files");
            more.extend(["ETag", "Content-Security-Policy"]);
        }
        if is_disk && ["200", "206"].contains(&status.as_str()) {
            more.extend(DISK_HEADERS);
            more.extend(["Repr-Digest", "Content-Digest"]);
        }
        if is_disk && status == "206" {
            more.push("Content-Range");
        }
        if is_ticket {
            more.push("Referrer-Policy");
        }
        for name in more {
            response["headers"][name] = reference("headers", name);
        }
    }
}

fn add_standard_headers(response: &mut Value) {
    for name in HEADERS {
        response["headers"][name] = reference("headers", name);
    }
}

/// The operation HEAD of a path: GET without bodies.
fn head(operation: &mut Value) {
    let id = operation["operationId"].as_str().unwrap_or_default().replacen("get", "head", 1);
    operation["operationId"] = json!(id);
    operation["summary"] = json!("The size of a disk: GET without the body. It ignores Range.");
    if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
        parameters.retain(|parameter| {
            !["Range", "If-Range", "Want-Content-Digest"].iter().any(|name| parameter["name"] == *name)
        });
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    responses.remove("206");
    for (status, response) in responses.iter_mut() {
        if response.get("$ref").is_some() {
            let description = format!("As for GET, without a body: {status}.");
            *response = json!({"description": description});
            add_standard_headers(response);
        }
        if let Some(response) = response.as_object_mut() {
            response.remove("content");
        }
    }
}

/// The operations of a path of a disk, for a ticket.
fn by_ticket(mut item: Value, summary: &str) -> Value {
    let secret = json!({
        "name": "secret",
        "in": "path",
        "required": true,
        "description": "The secret of the ticket. It permits the request, without a token.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
    });
    for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let id = format!("{}ByTicket", operation["operationId"].as_str().unwrap_or_default());
        operation["operationId"] = json!(id);
        operation["summary"] = json!(summary);
        operation["tags"] = json!(["Tickets"]);
        let others = ["vm", "snapshot", "compareTo", "ifFull", "reverse", "refine"];
        if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
            parameters.retain(|parameter| !others.iter().any(|name| parameter["name"] == *name));
            parameters.insert(0, secret.clone());
        }
    }
    item
}

fn security_schemes() -> Value {
    json!({
        "token": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "The token of a log-in (`POST /api/v1/auth/login`). With a refresh token, `POST \
                /api/v1/auth/refresh` gives the next one before it expires.",
        },
        "basic": {
            "type": "http",
            "scheme": "basic",
            "description": "Any user name, with the token as the password, for tools that have only options for these. The \
                password of a user is refused. The service never asks for it, so a tool must send it unasked.",
        },
        "certificate": {
            "type": "mutualTLS",
            "description": "A client certificate that a rule of the config names. A header `Authorization` decides alone.",
        },
    })
}

fn headers() -> Value {
    let text = |description: &str| json!({"required": true, "description": description, "schema": {"type": "string"}});
    let fixed = |value: &str, description: &str| json!({"required": true, "description": description, "schema": {"type": "string", "enum": [value]}});
    let optional = |description: &str, pattern: &str| json!({"description": description, "schema": {"type": "string", "pattern": pattern}});
    json!({
        "X-Request-Id": {
            "required": true,
            "description": "The id of the request in the log.",
            "schema": reference("schemas", "Id"),
        },
        "Cache-Control": fixed("no-store", "Answers have tokens and guests' data."),
        "Cache-Control-Of-Files": fixed("no-cache", "A client may keep the file, and asks whether it is still the same."),
        "Content-Security-Policy": text("What the page may load: only files of this service."),
        "X-Content-Type-Options": fixed("nosniff", "A browser must not treat an answer as something else."),
        "Referrer-Policy": fixed("no-referrer", "The address has a secret."),
        "WWW-Authenticate": {"description": "If the token is missing or invalid.", "schema": {"type": "string", "enum": ["Bearer"]}},
        "Retry-After": {
            "description": "After how many seconds a retry may help.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "Accept-Ranges": fixed("bytes", "The unit of `Range`."),
        "ETag": text("The same as long as the bytes are."),
        "Last-Modified": text("When the snapshot was created."),
        "Content-Range": optional("The range in the body, if it is a single one.", r"^bytes \d+-\d+/\d+$"),
        "Unsatisfied-Range": {
            "required": true,
            "description": "The size of the disk.",
            "schema": {"type": "string", "pattern": r"^bytes \*/\d+$"},
        },
        "Repr-Digest": optional("The digest of the disk, if the request wants it (RFC 9530).", "^sha-256=:[A-Za-z0-9+/]{43}=:$"),
        "Content-Digest": optional("The digest of the body, if the request wants it (RFC 9530).", "^sha-256=:[A-Za-z0-9+/]{43}=:$"),
    })
}
