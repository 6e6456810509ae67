//! What the derived schemas lack.

use serde_json::{Map, Value, json};

use super::reference::reference;

/// The bodies of requests. In these, `null` counts as missing; in answers, a field that is not required is never `null`.
const REQUESTS: [&str; 7] =
    ["CreateSnapshot", "CreateSnapshots", "CreateTicket", "Login", "Refresh", "Revoke", "TakeLease"];

/// Completes `components.schemas`.
pub(super) fn complete(schemas: &mut Map<String, Value>) {
    // Their fields are those of an answer that includes them.
    for name in ["DiskMap", "Retention", "Ticket"] {
        let Some(part) = schemas.get(name).cloned() else { continue };
        schemas.values_mut().for_each(|schema| include(schema, &reference("schemas", name), &part));
    }
    for (name, schema) in schemas.iter_mut() {
        tidy(schema);
        if !REQUESTS.contains(&name.as_str()) {
            remove_nulls(schema);
        }
    }
    schemas.retain(|name, _| !["DiskMap", "Retention"].contains(&name.as_str()));
    // They have defaults, because older services send fewer of them.
    if let Some(limits) = schemas.get_mut("Limits") {
        let names: Vec<_> = limits["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect();
        limits["required"] = json!(names);
    }
}

/// Replaces the reference to a part by its fields.
fn include(schema: &mut Value, of: &Value, part: &Value) {
    let Some([found, own]) = schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) else { return };
    // All of an optional part is missing, or nothing of it.
    let is_optional =
        found["oneOf"].as_array().is_some_and(|choices| choices.iter().any(|choice| choice["$ref"] == of["$ref"]));
    if !is_optional && found["$ref"] != of["$ref"] {
        return;
    }
    let mut whole = own.clone();
    if let (Some(fields), Some(more)) = (whole["properties"].as_object_mut(), part["properties"].as_object()) {
        fields.extend(more.clone());
    }
    if let (false, Some(required), Some(more)) =
        (is_optional, whole["required"].as_array_mut(), part["required"].as_array())
    {
        required.extend(more.clone());
    }
    whole["description"] = schema["description"].clone();
    *schema = whole;
}

/// Removes `null` from the types of the fields that are not required.
fn remove_nulls(schema: &mut Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if required.iter().any(|required| required == name) {
            continue;
        }
        if let Some(types) = field.get_mut("type").filter(|types| types.is_array()) {
            *types = types
                .as_array()
                .and_then(|types| types.iter().find(|kind| *kind != "null"))
                .cloned()
                .unwrap_or_default();
        }
        let choice = field.get("oneOf").and_then(Value::as_array);
        let choice = choice.and_then(|choices| choices.iter().find(|choice| choice.get("$ref").is_some())).cloned();
        if let (Some(choice), Some(field)) = (choice, field.as_object_mut()) {
            field.remove("oneOf");
            field.extend(choice.as_object().cloned().unwrap_or_default());
        }
    }
}

/// Writes examples as JSON Schema does, and leaves out defaults that say nothing.
fn tidy(schema: &mut Value) {
    let Some(members) = schema.as_object_mut() else { return };
    if members.get("default").is_some_and(Value::is_null) {
        members.remove("default");
    }
    if let Some(example) = members.remove("example") {
        members.insert("examples".to_owned(), json!([example]));
    }
    members.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut).for_each(tidy);
}
