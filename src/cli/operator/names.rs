//! VMs and snapshots as users name them.

use anyhow::{Context, bail};

use crate::api;
use crate::cli::client::exit::UsageError;
use crate::client::Client;

/// Characters of the start of a snapshot's id. A shorter one may match by chance later.
const SHORTEST_PREFIX: usize = 6;

/// Other names that an error proposes.
const MAX_PROPOSALS: usize = 3;

/// Below this, names do not look alike.
const SIMILARITY: f64 = 0.75;

/// A VM that the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName {
    /// Its name in the API.
    pub id: String,
    /// For people.
    pub shown: String,
}

/// The VM whose name, uuid or friendly name is `given`.
///
/// # Errors
/// There is none, or several have this friendly name.
pub fn find_vm(client: &Client, given: &str) -> anyhow::Result<VmName> {
    match client.vms() {
        Ok(vms) => choose_vm(&vms, given),
        // Its snapshots may be in a repository that can be used.
        Err(error) if error.code() == Some("repository_unavailable") && is_id(given) => Ok(unlisted(given)),
        Err(error) => Err(error.into()),
    }
}

/// A VM that was removed can still have snapshots.
fn unlisted(id: &str) -> VmName {
    VmName { id: id.to_owned(), shown: id.to_owned() }
}

/// Whether the text is the name of a VM, which no other VM has.
fn is_id(given: &str) -> bool {
    given.len() == 32 && given.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn choose_vm(vms: &[api::Vm], given: &str) -> anyhow::Result<VmName> {
    let listed = || vms.iter().filter(|vm| vm.unavailable_repository.is_none());
    let by_id = || listed().filter(|vm| vm.name == given);
    let by_uuid = || listed().filter(|vm| vm.uuid.eq_ignore_ascii_case(given));
    let by_friendly_name = || listed().filter(|vm| vm.friendly_name == given);
    let found: Vec<&api::Vm> = [by_id().collect(), by_uuid().collect(), by_friendly_name().collect()]
        .into_iter()
        .find(|found: &Vec<_>| !found.is_empty())
        .unwrap_or_default();
    match found.as_slice() {
        [vm] => Ok(VmName { id: vm.name.clone(), shown: shown(vm) }),
        [] if is_id(given) => Ok(unlisted(given)),
        [] => {
            let hidden = vms.iter().filter(|vm| vm.unavailable_repository.is_some()).count();
            let names = listed().flat_map(|vm| [vm.friendly_name.as_str(), &vm.name, &vm.uuid]);
            let hidden = if hidden > 0 { "; it may be in a repository that is unavailable (see vms)" } else { "" };
            bail!("there is no VM {given:?}{}{hidden}", proposals(given, names))
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|vm| vm.name.as_str()).collect();
            bail!("{} VMs are called {given:?}; name one by its id: {}", ids.len(), ids.join(", "))
        }
    }
}

/// The name of a VM with its id.
pub fn shown(vm: &api::Vm) -> String {
    if vm.friendly_name.is_empty() { vm.name.clone() } else { format!("{} ({})", vm.friendly_name, vm.name) }
}

/// The id of a snapshot: as it is given, or the one that starts with it.
///
/// # Errors
/// No snapshot of the VM, or more than one, starts with it.
pub fn find_snapshot(snapshots: &[api::Snapshot], vm: &VmName, given: &str) -> anyhow::Result<String> {
    let given = given.to_ascii_lowercase();
    let ids = || snapshots.iter().map(|snapshot| snapshot.id.as_str());
    // The service may know more about it than the list: that it belongs to another VM, or is no longer in the database.
    if let Some(id) = uuid::Uuid::try_parse(&given).ok().map(|id| id.to_string()) {
        return Ok(id);
    }
    let found: Vec<&str> = ids().filter(|id| id.starts_with(&given)).collect();
    if given.len() < SHORTEST_PREFIX {
        let problem = format!(
            "{given:?} is too short for a snapshot: give its id, or at least {SHORTEST_PREFIX} \
             characters of its start"
        );
        return Err(UsageError(problem).into());
    }
    match found.as_slice() {
        [id] => Ok((*id).to_owned()),
        [] => {
            let starts = ids().map(|id| id.get(..given.len()).unwrap_or(id));
            bail!("{} has no snapshot {given:?}{}", vm.shown, proposals(&given, starts))
        }
        several => bail!("{} snapshots of {} start with {given:?}: {}", several.len(), vm.shown, several.join(", ")),
    }
}

/// The snapshots of a VM, oldest first.
pub fn snapshots_of(client: &Client, vm: &VmName) -> anyhow::Result<Vec<api::Snapshot>> {
    client.get(&format!("/vms/{}/snapshots?chunks=false", vm.id)).with_context(|| vm.shown.clone())
}

/// Names that look like `given`, for an error.
fn proposals<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut alike: Vec<(f64, &str)> = names.map(|name| (strsim::jaro_winkler(given, name), name)).collect();
    alike.retain(|(similarity, _)| *similarity >= SIMILARITY);
    alike.sort_by(|(a, left), (b, right)| b.total_cmp(a).then(left.cmp(right)));
    alike.dedup_by(|(_, a), (_, b)| a == b);
    let names: Vec<String> = alike.iter().take(MAX_PROPOSALS).map(|(_, name)| format!("{name:?}")).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(friendly_name: &str, number: u32) -> api::Vm {
        let text = format!(
            r#"{{"friendly_name": "{friendly_name}", "name": "{number:032x}", "uuid": "{}", "disks": [],
                "snapshot_compatible": true, "snapshots": [], "status": "ok"}}"#,
            uuid::Uuid::from_u128(number.into()),
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn vms_are_found_by_any_name() {
        let vms = [vm("web-1", 1), vm("web-2", 2), vm("twin", 3), vm("twin", 4), vm(&format!("{:032x}", 1), 5)];
        let found = |given: &str| choose_vm(&vms, given).map(|vm| vm.id).map_err(|error| error.to_string());
        let id = |number: u32| Ok(format!("{number:032x}"));
        assert_eq!(found("web-1"), id(1));
        assert_eq!(found(&format!("{:032x}", 1)), id(1), "a name comes before a friendly name");
        assert_eq!(found("00000000-0000-0000-0000-000000000002"), id(2));
        assert_eq!(found(&format!("{:032x}", 9)), id(9), "it may be a removed VM");
        let error = found("twin").unwrap_err();
        assert!(error.starts_with("2 VMs are called \"twin\"; name one by its id: "), "{error}");
        assert!(error.contains(&format!("{:032x}, {:032x}", 3, 4)), "{error}");
        assert_eq!(found("wbe-1").unwrap_err(), "there is no VM \"wbe-1\"; did you mean \"web-1\" or \"web-2\"?");
        assert_eq!(found("Zürich").unwrap_err(), "there is no VM \"Zürich\"");
    }

    #[test]
    fn snapshots_are_found_by_the_start_of_their_id() {
        let snapshot = |id: &str| -> api::Snapshot {
            let text = format!(
                r#"{{"id": "{id}", "vm_id": "a", "vmID": "a", "created_at": "2024-01-01T00:00:00Z", "created_by": "a",
                    "consistency": "crash", "hooks": [], "disks": []}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let ids = ["6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d", "6f2cdd2b-9f3c-4f0e-8a52-0c3f3a1b2c4d"];
        let snapshots = ids.map(snapshot);
        let vm = VmName { id: "a".to_owned(), shown: "web-1".to_owned() };
        let found = |given: &str| find_snapshot(&snapshots, &vm, given).map_err(|error| error.to_string());
        assert_eq!(found("6f2cdd2a").unwrap(), ids[0]);
        assert_eq!(found("6F2CDD2B-9f3c").unwrap(), ids[1]);
        let other = "00000000-9f3c-4f0e-8a52-0c3f3a1b2c4d";
        assert_eq!(found(other).unwrap(), other);
        for (given, expected) in [
            ("6f2cdd", "2 snapshots of web-1 start with \"6f2cdd\": "),
            ("6f2cd", "\"6f2cd\" is too short"),
            ("", "\"\" is too short"),
            ("6f2ddd2a", "web-1 has no snapshot \"6f2ddd2a\"; did you mean \"6f2cdd2a\" or \"6f2cdd2b\"?"),
            ("last", "\"last\" is too short"),
            ("latest", "web-1 has no snapshot \"latest\""),
        ] {
            let error = found(given).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
