//! Links: which values of an answer are parameters of other operations. Tools that test the service follow them.

use serde_json::{Map, Value, json};

/// Adds the links to the answers of the operations.
pub(super) fn add(operations: &mut [(&str, &mut Value)]) {
    for (id, operation) in operations {
        let links = of(id);
        if !links.is_empty() {
            operation["responses"]["200"]["links"] = Value::Object(links);
        }
    }
}

fn of(operation: &str) -> Map<String, Value> {
    const DISK: [(&str, &str); 3] =
        [("vm", "$request.path.vm"), ("snapshot", "$request.path.snapshot"), ("disk", "$request.path.disk")];
    let mut links = Map::new();
    match operation {
        "logIn" | "refresh" => {
            let body = json!({"refresh_token": "$response.body#/refresh_token"});
            links.insert("refresh".to_owned(), json!({"operationId": "refresh", "requestBody": body}));
        }
        "listVms" => {
            for (name, target) in [("vm", "getVm"), ("create", "createSnapshot"), ("snapshots", "listSnapshots")] {
                links.insert(name.to_owned(), link(target, &[("vm", "$response.body#/0/name")]));
            }
        }
        "listSnapshots" => links = of_snapshot("$request.path.vm", "$response.body#/0"),
        "createSnapshot" => links = of_snapshot("$request.path.vm", "$response.body#"),
        "createSnapshots" => links = of_snapshot("$response.body#/0/vm_id", "$response.body#/0"),
        "listTickets" | "createTicket" => {
            let id = if operation == "listTickets" { "$response.body#/0/id" } else { "$response.body#/id" };
            links.insert("end".to_owned(), link("endTicket", &[&DISK[..], &[("ticket", id)]].concat()));
            if operation == "createTicket" {
                links.insert("list".to_owned(), link("listTickets", &DISK));
            }
        }
        _ => {}
    }
    links
}

/// The links of a snapshot at `place`.
fn of_snapshot(vm: &str, place: &str) -> Map<String, Value> {
    let (id, disk) = (format!("{place}/id"), format!("{place}/disks/0/name"));
    let snapshot = [("vm", vm), ("snapshot", &id)];
    let base = [&snapshot[..], &[("query.compareTo", &id)]].concat();
    let with_disk = [&snapshot[..], &[("disk", &disk)]].concat();
    [
        ("snapshot", "getSnapshot", &snapshot[..]),
        ("compare", "getSnapshot", &base),
        ("delete", "deleteSnapshot", &snapshot),
        ("lease", "takeLease", &snapshot),
        ("endLease", "endLease", &snapshot),
        ("disk", "getDisk", &with_disk),
        ("diskHead", "headDisk", &with_disk),
        ("diskChunks", "getChunks", &with_disk),
        ("diskChecksum", "getChecksum", &with_disk),
        ("ticket", "createTicket", &with_disk),
        ("tickets", "listTickets", &with_disk),
    ]
    .into_iter()
    .map(|(name, target, parameters)| (name.to_owned(), link(target, parameters)))
    .collect()
}

fn link(operation: &str, parameters: &[(&str, &str)]) -> Value {
    let parameters: Map<String, Value> =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({"operationId": operation, "parameters": parameters})
}
