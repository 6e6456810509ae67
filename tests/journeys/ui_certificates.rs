//! The page at `/ui` with client certificates, in a headless Chromium that has them. `ui/certificate.py` drives it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::access::{certificate_rule, rule};
use crate::harness::{Certificates, Client, MB, PASSWORD, VM, World, text, write_at};
use crate::ui::{has_browser, root, run_steps};
use crate::{needs, needs_root};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a home folder whose user has this certificate in the browser.
fn home_with(folder: &Path, certificates: &Certificates, name: &str) {
    let database = folder.join(".pki/nssdb");
    fs::create_dir_all(&database).unwrap();
    let database = format!("sql:{}", database.display());
    run(Command::new("certutil").args(["-N", "--empty-password", "-d", &database]));
    let bundle = folder.join("bundle.p12");
    let [certificate, key] = ["pem", "key"].map(|kind| certificates.path(format!("{name}.{kind}")));
    let mut pack = Command::new("openssl");
    pack.args(["pkcs12", "-export", "-passout", "pass:", "-name", name, "-in"]).arg(certificate).arg("-inkey").arg(key);
    run(pack.arg("-out").arg(&bundle));
    run(Command::new("pk12util").args(["-W", "", "-d", &database, "-i"]).arg(&bundle));
}

#[test]
fn a_certificate_that_a_rule_names_needs_no_log_in() {
    needs_root!();
    needs!(
        has_browser() && Path::new("/usr/bin/certutil").is_file(),
        "chromium, playwright and certutil: make deps-test"
    );
    let mut world = World::with(512, |settings| {
        let rules = certificate_rule("ann", "operator") + &rule("admin", "admin", "");
        settings.sections = format!("[access]\ndefault_role = \"none\"\n{rules}");
        let ca = settings.certificate.with_file_name("ca.pem");
        settings.tls = format!("client_auth = \"optional\"\nca_certificate = {ca:?}");
    });
    write_at(&world.define_vm(&[("system.img", 64 * MB)])[0], 0, &vec![7; MB as usize]);
    // The client that starts the service has no certificate.
    world.exporter.settings().tls = world.exporter.settings().tls.replace("optional", "required");
    world.exporter.restart();

    let homes = tempfile::tempdir().unwrap();
    for name in ["ann", "bob"] {
        world.certificates.issue(name);
        home_with(&homes.path().join(name), &world.certificates, name);
    }
    let ann = Client::with_certificate(&world.exporter, &world.certificates, "ann");
    let first = text(&ann.take_snapshot()["id"]);

    // A policy of the browser chooses the certificate, as a person does in a dialog.
    let url = format!("https://localhost:{}", world.exporter.port);
    let policies = homes.path().join("chromium");
    fs::create_dir_all(policies.join("policies/managed")).unwrap();
    let choice = json!({"pattern": url, "filter": {}}).to_string();
    let policy = json!({"AutoSelectCertificateForUrls": [choice]});
    fs::write(policies.join("policies/managed/certificates.json"), policy.to_string()).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/chromium && exec \"$@\""]).arg(&policies);

    let input = json!({
        "url": url,
        "password": PASSWORD,
        "vm": VM,
        "snapshots": [first],
        "homes": homes.path(),
        "certificates": world.certificates.ca().parent(),
        "config": world.exporter.db_file().with_file_name("config.toml"),
        "pid": world.exporter.pid(),
        "pictures": root().join("target/ui"),
    });
    run_steps(&world, &mut command, "certificate.py", &input);
}
