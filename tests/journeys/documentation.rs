//! The OpenAPI document and its page, as the service serves them, and a client that a generator makes from the document.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{MB, PASSWORD, USER, VM, World, define_vm, make_disk, run, write_at};
use crate::{needs, needs_root};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The status, headers and body of a path, as curl gets them.
fn curl(world: &World, arguments: &[&str], path: &str) -> (u16, String, String) {
    let output = Command::new("curl")
        .args(["-sS", "--compressed", "-D", "-", "--max-time", "20", "--cacert"])
        .arg(world.certificates.ca())
        .args(arguments)
        .arg(format!("https://localhost:{}{path}", world.exporter.port))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// The addresses that a page names: the values of `src` and `href`.
fn named(page: &str) -> Vec<&str> {
    let values = |name| page.split(name).skip(1).map(|rest| rest.split('"').next().unwrap());
    values("src=\"").chain(values("href=\"")).collect()
}

#[test]
fn the_document_and_its_page_are_served_without_other_hosts() {
    needs_root!();
    let world = World::new(512);
    let (status, head, body) = curl(&world, &[], "/api/v1/openapi.json");
    assert_eq!(status, 200, "{head}");
    let document: Value = serde_json::from_str(&body).unwrap();
    let golden: Value = serde_json::from_slice(&fs::read(root().join("docs/openapi.json")).unwrap()).unwrap();
    assert!(document == golden, "the document is not docs/openapi.json");
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, head, body) = curl(&world, &["-H", &format!("If-None-Match: {etag}")], "/api/v1/openapi.json");
    assert_eq!((status, &*body), (304, ""), "{head}");

    for path in ["/api/v1/docs", "/api/v1/docs/"] {
        let (status, head, page) = curl(&world, &["-H", "Accept: text/html"], path);
        assert_eq!(status, 200, "{head}");
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        // No script in the page itself, which the policy would refuse.
        assert!(page.contains("<script src=\"") && !page.contains("<script>"), "{page}");
        let files: Vec<_> = named(&page).into_iter().filter(|at| *at != "data:,").collect();
        assert_eq!(files.len(), 4, "{files:?}");
        for file in files {
            assert!(file.starts_with("/api/v1/"), "{file}");
            let (status, head, body) = curl(&world, &[], file);
            assert_eq!(status, 200, "{file}: {head}");
            assert!(head.contains("x-content-type-options: nosniff"), "{file}: {head}");
            let expected = if file.ends_with(".css") {
                "text/css"
            } else if file.ends_with(".js") {
                "text/javascript"
            } else {
                "application/json"
            };
            assert!(head.contains(&format!("content-type: {expected}")), "{file}: {head}");
            assert!(!body.is_empty() && !body.contains("url(http") && !body.contains("@import"), "{file}");
        }
        assert!(!page.contains("://"), "{page}");
    }
    let (_, _, start) = curl(&world, &[], "/api/v1/docs/start.js");
    assert!(!start.contains("://") && start.contains("validatorUrl: null"), "{start}");
    let (status, _, body) = curl(&world, &[], "/api/v1/docs/other.js");
    assert_eq!(status, 404, "{body}");
}

#[test]
fn the_documentation_can_be_switched_off() {
    needs_root!();
    let world = World::with(512, |settings| settings.api = "docs = false\n".to_owned());
    for path in ["/api/v1/openapi.json", "/api/v1/docs", "/api/v1/docs/start.js"] {
        let (status, _, body) = curl(&world, &[], path);
        assert!(status == 404 && body.contains("not_found"), "{path}: {status} {body}");
    }
}

fn generator() -> PathBuf {
    root().join("target/openapi-client/bin/openapi-python-client")
}

/// Logs in, lists the VMs, snapshots the first one, and downloads its disk with the generated client.
const SCRIPT: &str = r#"
import os, ssl
from generated import AuthenticatedClient, Client
from generated.api.log_ins import log_in
from generated.api.inventory import list_vms
from generated.api.snapshots import create_snapshot, delete_snapshot, get_snapshot
from generated.api.disks import get_disk
from generated.models import CreateSnapshot, Login

trusted = ssl.create_default_context(cafile=os.environ["CA"])
url = os.environ["EXPORTER"]
login = Login(username=os.environ["USERNAME"], password=os.environ["PASSWORD"])
token = log_in.sync(client=Client(base_url=url, verify_ssl=trusted), body=login).token
client = AuthenticatedClient(base_url=url, token=token, verify_ssl=trusted)
[vm] = list_vms.sync(client=client)
made = create_snapshot.sync(vm.name, client=client, body=CreateSnapshot(description="by a generated client"))
found = get_snapshot.sync(vm.name, made.id, client=client)
assert found.description == "by a generated client" and found.vm_id == vm.name, found
[disk] = found.disks
image = get_disk.sync(vm.name, found.id, disk.name, client=client).payload.read()
assert len(image) == disk.size, (len(image), disk.size)
part = get_disk.sync_detailed(vm.name, found.id, disk.name, client=client, range_="bytes=0-4095")
assert part.status_code == 206 and part.parsed.payload.read() == image[:4096], part
missing = get_snapshot.sync(vm.name, "00000000-0000-4000-8000-000000000000", client=client)
assert missing.code == "not_found", missing
open(os.environ["OUT"], "wb").write(image)
assert delete_snapshot.sync_detailed(vm.name, found.id, client=client).status_code == 200
"#;

#[test]
fn a_generated_client_lists_snapshots_and_downloads() {
    needs_root!();
    needs!(generator().is_file(), "openapi-python-client (make openapi-client)");
    let world = World::new(512);
    let disk = make_disk(&world.repository, "a.img", MB);
    write_at(&disk, 100_000, &[7; 8192]);
    define_vm(&world.repository, VM, std::slice::from_ref(&disk));
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a.img");
    run(Command::new(generator())
        .args(["generate", "--meta", "none", "--fail-on-warning", "--output-path", "generated"])
        .arg("--config")
        .arg(root().join("tests/openapi-client.yaml"))
        .arg("--path")
        .arg(root().join("docs/openapi.json"))
        .current_dir(folder.path()));
    run(Command::new(generator().with_file_name("python"))
        .args(["-c", SCRIPT])
        .current_dir(folder.path())
        .env("EXPORTER", format!("https://localhost:{}", world.exporter.port))
        .env("CA", world.certificates.ca())
        .env("USERNAME", USER)
        .env("PASSWORD", PASSWORD)
        .env("OUT", &image));
    assert_eq!(fs::read(image).unwrap(), fs::read(disk).unwrap());
    assert_eq!(world.client().get(&format!("/vms/{VM}/snapshots")).ok(), serde_json::json!([]));
}

/// The `sh` blocks of the guide as one script.
fn commands_of_the_guide() -> String {
    let guide = fs::read_to_string(root().join("docs/api.md")).unwrap();
    let blocks = guide.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[test]
fn the_commands_of_the_guide_run() {
    needs_root!();
    let world = World::new(512);
    let disk = make_disk(&world.repository, "system.img", 2 * MB);
    write_at(&disk, MB, &[7; MB as usize]);
    define_vm(&world.repository, VM, std::slice::from_ref(&disk));
    let mut script = commands_of_the_guide();
    // Only the host, the certificate, the VM and the user are replaced, and the guest writes between the snapshots.
    let mut replace = |from: &str, to: &str| {
        assert!(script.contains(from), "the guide does not contain {from:?} any more");
        script = script.replace(from, to);
    };
    replace("https://exporter.example:5544", &format!("https://localhost:{}", world.exporter.port));
    replace("/etc/coriolis-ovm-exporter/srv-pub.pem", &world.certificates.ca().display().to_string());
    replace("VM=0004fb00000600000000000000000001", &format!("VM={VM}"));
    replace(
        r#""username": "admin", "password": "secret""#,
        &format!(r#""username": "{USER}", "password": "{PASSWORD}""#),
    );
    let guest = format!("printf changed | dd of={} conv=notrunc,fsync status=none", disk.display());
    replace("\nNEW=$(", &format!("\n{guest}\nNEW=$("));
    let folder = tempfile::tempdir().unwrap();
    let checks = "cmp system.img resumed.img\ngrep -q changed part\n\
        [ \"$(b3sum --no-names system.img)\" = \"$(get \"$EXPORTER/api/v1/vms/$VM/snapshots/$ID/disks/system.img/checksum\" \
        | jq -r .checksum)\" ]\n";
    run(Command::new("bash")
        .args(["-c", &format!("set -euxo pipefail\n{script}\n{checks}")])
        .current_dir(folder.path()));
}
