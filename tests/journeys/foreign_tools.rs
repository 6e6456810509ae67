//! The tools that README.md names read a disk with a ticket, and get its bytes.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{MB, Random, SNAPSHOTS, World, text, write_at};
use crate::{needs, needs_root};

const TOOLS: [&str; 6] = ["qemu-img", "nbdkit", "nbdcopy", "wget", "aria2c", "rclone"];

fn has_tools() -> bool {
    let has = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    // The https driver of qemu-img is a package of its own.
    let drivers = Command::new("sh").args(["-c", "ls /usr/lib/*/qemu/block-curl.so"]).output();
    let has_https = drivers.is_ok_and(|found| found.status.success());
    TOOLS.iter().all(has) && has_https && fs::metadata(HOST_AUTHORITIES).is_ok()
}

const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The block of the README about tools, and the one for hosts that trust the certificate.
fn blocks() -> [String; 2] {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    ["sh", "bash"].map(|fence| {
        let begin = format!("```{fence}\n");
        let blocks = readme.split(&begin).skip(1).map(|rest| rest.split_once("```").unwrap().0);
        let found: Vec<&str> = blocks.filter(|block| block.contains("qemu-img")).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].to_owned()
    })
}

fn run(world: &World, folder: &Path, url: &str, token: &str, commands: &str) {
    // The first line of the README's block requests the ticket.
    let commands: Vec<&str> = commands.lines().filter(|line| !line.contains("/tickets")).collect();
    let script = format!("set -euxo pipefail\n{}\n", commands.join("\n"));
    // Each tool takes a second or two.
    let output = Command::new("timeout")
        .args(["5m", "bash", "-c", &script])
        .current_dir(folder)
        .env("URL", url)
        .env("TOKEN", token)
        .env("DISK", "a.img")
        .env("CURL_CA_BUNDLE", world.certificates.ca())
        .env("HOME", folder)
        .env("no_proxy", "*")
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&printed));
}

#[test]
fn each_tool_of_the_readme_gets_the_bytes_of_the_disk() {
    needs_root!();
    needs!(has_tools(), "qemu-utils, qemu-block-extra, nbdkit, libnbd-bin, wget, aria2, rclone");
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 96 * MB)])[0];
    let bytes = Random(7).bytes(24 << 20);
    write_at(disk, 3 << 20, &bytes);
    write_at(disk, 60 << 20, &bytes[..5 << 20]);
    let client = world.client();
    let id = client.take_snapshot_id();
    // The guest goes on.
    write_at(disk, 0, &[9; 1 << 20]);
    let expected = client.disk(&id, "a.img");
    let ticket = client.post(&format!("{SNAPSHOTS}/{id}/disks/a.img/tickets")).ok();
    let url = text(&ticket["url"]);

    let folder = tempfile::tempdir().unwrap();
    let [block, direct] = blocks();
    run(&world, folder.path(), &url, &client.token, &block);
    // A host that trusts the authority, in a mount namespace of its own.
    let trusted = folder.path().join("authorities.pem");
    let authorities = [fs::read(HOST_AUTHORITIES).unwrap(), fs::read(world.certificates.ca()).unwrap()].concat();
    fs::write(&trusted, authorities).unwrap();
    let script = format!("mount --bind {} {HOST_AUTHORITIES}", trusted.display());
    let inner = format!("{script}\n{direct}");
    fs::write(folder.path().join("inner.sh"), format!("set -euxo pipefail\n{inner}")).unwrap();
    run(&world, folder.path(), &url, &client.token, "unshare --mount --propagation private bash inner.sh");

    // With the token as the password.
    let disk = format!("https://127.0.0.1:{}/api/v1{SNAPSHOTS}/{id}/disks/a.img", world.exporter.port);
    let with_user = disk.replace("https://", "https://x:$TOKEN@");
    let basic = format!(
        "curl -sS --fail -u \":$TOKEN\" -o basic-curl.img {disk}\n\
         wget --no-verbose --ca-certificate=$CURL_CA_BUNDLE --user=x --password=\"$TOKEN\" --auth-no-challenge \
             -O basic-wget.img {disk}\n\
         aria2c --quiet --ca-certificate=$CURL_CA_BUNDLE --http-user=x --http-passwd=\"$TOKEN\" \
             -o basic-aria2.img {disk}\n\
         rclone copyurl --ca-cert=$CURL_CA_BUNDLE \"{with_user}\" basic-rclone.img"
    );
    run(&world, folder.path(), &url, &client.token, &basic);

    let convert = "for image in *.qcow2; do qemu-img convert -O raw $image ${image%.qcow2}.raw; done";
    run(&world, folder.path(), &url, &client.token, convert);
    let mut checked = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.extension().unwrap_or_default().to_str().unwrap();
        if ["img", "raw"].contains(&kind) {
            assert!(fs::read(&path).unwrap() == expected, "{}", path.display());
            checked.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    checked.sort();
    let basic = ["basic-aria2", "basic-curl", "basic-rclone", "basic-wget"];
    assert_eq!(checked.iter().filter(|name| name.starts_with("basic")).collect::<Vec<_>>(), basic.each_ref());
    checked.retain(|name| !name.starts_with("basic"));
    assert_eq!(checked, ["aria2", "direct", "nbdcopy", "qemu", "rclone", "wget"]);
    assert!(!world.exporter.log().contains(url.split('/').nth(4).unwrap()), "the secret is in the log");
}
