//! Services with access rules, and what their users do.

use std::fs;

use reqwest::Method;
use serde_json::Value;

use super::{Answer, Client, MB, OTHER_VM, World, define_vm, ids, make_disk, text, write_at};

/// A service with these lines of `[access]`, and two VMs of one disk each: `VM` is `web-1`, `OTHER_VM` is `db-1`.
pub fn world(access: &str) -> World {
    world_with(access, "")
}

pub fn world_with(access: &str, sections: &str) -> World {
    let world = World::with(512, |settings| settings.sections = format!("{sections}[access]\n{access}"));
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[7; 8192]);
    let disk = make_disk(&world.repository, "b.img", MB);
    write_at(&disk, 0, &[8; 8192]);
    define_vm(&world.repository, OTHER_VM, &[disk]);
    rename(&world, OTHER_VM, "web-1", "db-1");
    world
}

/// Gives a VM another friendly name.
pub fn rename(world: &World, vm: &str, from: &str, to: &str) {
    let file = world.repository.join("VirtualMachines").join(vm).join("vm.cfg");
    let text = fs::read_to_string(&file).unwrap();
    let renamed = text.replace(&format!("'{from}'"), &format!("'{to}'"));
    assert_ne!(renamed, text);
    fs::write(file, renamed).unwrap();
}

pub fn rule(user: &str, role: &str, more: &str) -> String {
    format!("[[access.rules]]\nusers = [{user:?}]\nrole = {role:?}\n{more}\n")
}

pub fn certificate_rule(name: &str, role: &str) -> String {
    rule("-", role, "").replace("users = [\"-\"]", &format!("certificates = [{name:?}]"))
}

pub fn user(world: &World, name: &str) -> Client {
    Client::logged_in_as(&world.exporter, &world.certificates, name)
}

/// Checks that this is a refusal for want of `role`.
pub fn lacks(answer: &Answer, role: &str) {
    assert_eq!(answer.error(403), "forbidden");
    let details = text(&answer.json()["details"]);
    assert!(
        details.starts_with(&format!("the role {role} is needed ")) && details.contains("access.rules"),
        "{details}"
    );
}

pub fn create(client: &Client, vm: &str, body: &Value) -> Answer {
    client.send(client.request(Method::POST, &format!("/api/v1/vms/{vm}/snapshots")).body(body.to_string()))
}

pub fn list(client: &Client, vm: &str) -> Vec<String> {
    ids(&client.get(&format!("/vms/{vm}/snapshots?chunks=false")).ok())
}
