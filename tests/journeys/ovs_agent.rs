//! On an Oracle VM server: repositories and manager come from ovs-agent's databases.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    AgentDb, Certificates, Client, Exporter, Manager, Settings, VM, Volume, World, define_vm, make_disk,
    make_repository, text,
};
use crate::needs_root;

const FIRST: &str = "0004fb0000030000a1b2c3d4e5f60001";
const SECOND: &str = "0004fb0000030000a1b2c3d4e5f60002";
const UNMOUNTED: &str = "0004fb0000030000a1b2c3d4e5f60003";

fn entry<'a>(list: &'a Value, id: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {list}"))
}

fn fields(mount_point: &Path) -> [(&'static str, String); 5] {
    [
        ("mount_point", mount_point.display().to_string()),
        ("alias", "gold".to_owned()),
        ("filesystem", "xfs".to_owned()),
        ("version", "3.0".to_owned()),
        ("manager_uuid", "0004fb0000010000a1b2c3d4e5f60718".to_owned()),
    ]
}

fn write(agent: &AgentDb, entries: &[(&str, &[(&'static str, String)])]) {
    let texts: Vec<Vec<(&str, &str)>> =
        entries.iter().map(|(_, fields)| fields.iter().map(|(key, value)| (*key, value.as_str())).collect()).collect();
    let entries: Vec<(&str, &[(&str, &str)])> =
        entries.iter().zip(&texts).map(|((id, _), fields)| (*id, fields.as_slice())).collect();
    agent.write_repositories(&entries);
}

#[test]
fn repositories_and_manager_come_from_the_agent_databases() {
    needs_root!();
    let volume = Volume::xfs(512);
    let (first, second) = (make_repository(&volume.mount_point, FIRST), make_repository(&volume.mount_point, SECOND));
    let empty = volume.mount_point.join(UNMOUNTED);
    fs::create_dir(&empty).unwrap();
    let agent = AgentDb::new();
    let mut otherwise = fields(&second);
    otherwise[2].1 = "ocfs2".to_owned();
    let none: &[(&'static str, String)] = &[];
    write(&agent, &[(FIRST, &fields(&first)), (UNMOUNTED, &fields(&empty)), (SECOND, &otherwise), ("of no use", none)]);

    // The agent's databases contain no port, so this manager uses the default port at an unusual address.
    let address = "127.84.66.12";
    let certificates = Certificates::new();
    certificates.issue_for("manager", &[address]);
    let manager = Manager::start_at(&certificates, "manager", &format!("{address}:7002"));
    let settings = || {
        let mut settings = Settings::new(&certificates, &manager, &[]);
        settings.agent_db = Some(agent.path().to_owned());
        settings.ovm_endpoint.clear();
        settings
    };
    let (_, refusal) = Exporter::refusal(&settings());
    assert!(refusal.contains("ovm_endpoint: is empty, and ") && refusal.contains("server"), "{refusal}");
    agent.write_manager(address);
    let exporter = Exporter::start(settings());
    let client = Client::logged_in(&exporter, &certificates);

    let list = client.get("/repositories").ok();
    assert_eq!(list.as_array().unwrap().len(), 4);
    let good = entry(&list, FIRST);
    let (total, free) = (good["total_bytes"].as_u64().unwrap(), good["free_bytes"].as_u64().unwrap());
    assert!(free > 0 && free < total && total <= 512 << 20, "{good}");
    let expected = json!({
        "id": FIRST, "alias": "gold", "mount_point": first, "filesystem": "xfs", "version": "3.0",
        "manager_uuid": "0004fb0000010000a1b2c3d4e5f60718", "reflink": true, "total_bytes": total, "free_bytes": free,
        "status": "ok", "reason": null,
    });
    assert_eq!(*good, expected);
    let other = entry(&list, SECOND);
    assert_eq!(
        (&other["filesystem"], &other["reflink"]),
        (&json!("xfs"), &json!(true)),
        "the mounted file system, not the one in the database"
    );
    for (id, reason) in [(SECOND, "says ocfs2"), (UNMOUNTED, "nothing is mounted"), ("of no use", "no mount point")] {
        let listed = entry(&list, id);
        assert_eq!(listed["status"], "error", "{listed}");
        assert!(text(&listed["reason"]).contains(reason), "{listed}");
    }
    let stranger = Client::new(&exporter, &certificates);
    assert_eq!(stranger.get("/repositories").error(401), "unauthorized");

    // A VM there is snapshotted, and a repository that is mounted later is noticed.
    define_vm(&first, VM, &[make_disk(&first, "a.img", 1 << 20)]);
    let id = client.take_snapshot_id();
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots/{id}")).ok()["disks"][0]["repo_mountpoint"], json!(first));
    let (vm, third) = ("0004fb00000600000000000000000003", make_repository(&empty, "disks"));
    let third = third.parent().unwrap();
    define_vm(third, vm, &[make_disk(&first, "b.img", 1 << 20)]);
    assert_eq!(client.get(&format!("/vms/{vm}")).ok()["snapshot_compatible"], true);
    write(&agent, &[(FIRST, &fields(&first))]);
    assert_eq!(client.get("/repositories").ok().as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/vms/{vm}")).error(404), "not_found");

    // An unreadable database: the last list stays in use, and /readyz reports the problem.
    let database = agent.path().join("repository");
    fs::write(&database, "no database").unwrap();
    assert_eq!(entry(&client.get("/repositories").ok(), FIRST)["status"], "ok");
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    let ready = client.send(client.request(reqwest::Method::GET, "/readyz"));
    assert_eq!(ready.status, 503);
    // Known VMs are listed; of unknown VMs it is not certain that they do not exist.
    assert_eq!(client.get(&format!("/vms/{VM}")).status, 200);
    assert_eq!(client.get("/vms").ok().as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/vms/{vm}")).error(503), "repository_unavailable");
    assert!(String::from_utf8_lossy(&ready.body).contains("list of repositories"), "{:?}", ready.body);
    assert!(exporter.log().contains(&database.display().to_string()), "the log does not name the file");

    // An unreadable manager address is an outage, not a wrong password.
    fs::write(agent.path().join("server"), "no database").unwrap();
    let login = client.request(reqwest::Method::POST, "/api/v1/auth/login");
    let answer = client.send(login.body(json!({"username": "admin", "password": "x"}).to_string()));
    assert_eq!(answer.error(502), "manager_unavailable");
    // Tokens stay valid.
    assert_eq!(client.get("/vms").status, 200);
}

#[test]
fn start_error_names_the_damaged_agent_database() {
    needs_root!();
    let agent = AgentDb::new();
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let mut settings = Settings::new(&certificates, &manager, &[]);
    settings.agent_db = Some(agent.path().to_owned());
    for content in [None, Some("no database")] {
        if let Some(content) = content {
            fs::write(agent.path().join("repository"), content).unwrap();
        }
        let (_, refusal) = Exporter::refusal(&settings);
        let file = agent.path().join("repository").display().to_string();
        assert!(refusal.contains("repositories.ovs_agent_db") && refusal.contains(&file), "{refusal}");
        assert!(refusal.contains("or name repositories in repositories.paths"), "{refusal}");
    }
    // With repositories in the config the service starts. The VM list has an error entry for the unknown repositories,
    // since it would look complete otherwise.
    let world = World::with(512, |settings| settings.agent_db = Some(agent.path().to_owned()));
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
    let listed = client.get("/vms").ok();
    let unknown = listed.as_array().unwrap().iter().find(|entry| entry["name"] == "ovs-agent").unwrap();
    assert_eq!(unknown["status"], "error", "{listed}");
    assert!(text(&unknown["reason"]).contains("its VMs are unknown"), "{listed}");
    assert_eq!(client.get("/vms/0004fb00000600000000000000000003").error(503), "repository_unavailable");
}
