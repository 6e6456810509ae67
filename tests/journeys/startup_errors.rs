//! The first start: the generated token key, and errors about the config.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::{
    Certificates, Client, Exporter, Manager, ManagerBehavior, PASSWORD, SECRET, Settings, USER, Volume, World,
    eventually_some, free_port, make_repository,
};
use crate::needs_root;
use coriolis_ovm_exporter::testing::Tokens;

/// EX_CONFIG: the units do not restart the service after it.
const BROKEN_CONFIG: Option<i32> = Some(78);

const SYNC_SECRET: &str = "a secret that every guest with the tag is sent";

fn key_file(exporter: &Exporter) -> PathBuf {
    let mut name = exporter.db_file().into_os_string();
    name.push(".jwt-secret");
    name.into()
}

/// The status of a request with a token that is signed with `key`.
fn with_forged_token(world: &World, key: &str) -> u16 {
    let tokens = Tokens::new(&key.into(), Duration::from_secs(3600));
    let mut client = world.anonymous_client();
    client.token = tokens.issue("admin", SystemTime::now()).unwrap();
    client.get("/vms").status
}

#[test]
fn service_generates_the_token_key() {
    needs_root!();
    let mut world = World::with(512, |settings| {
        settings.secret.clear();
        settings.sections = format!("[hooks.sync]\nsecret = {SYNC_SECRET:?}\nhosts = [\"guest.example\"]\n");
    });
    let client = world.client();
    let path = key_file(&world.exporter);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
    let key = fs::read_to_string(&path).unwrap();
    assert!(key.trim().len() == 64 && !world.exporter.log().contains(key.trim()), "the key is in the log");
    assert_eq!(with_forged_token(&world, key.trim()), 200, "this test cannot make a good token");
    let sample = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")).unwrap();
    let public = sample.split('"').chain(["", SYNC_SECRET, "YSBzZWNyZXQgdGhhdCBldmVyeSBndWVzdA==", SECRET]);
    for guess in public {
        assert_eq!(with_forged_token(&world, guess), 401, "a token signed with {guess:?} is accepted");
    }
    let (status, table) = world.exporter.command(&["check-config"]);
    assert!(
        status == Some(0) && table.contains("jwt.secret") && table.contains("which the service created"),
        "{table}"
    );
    let (status, output) = world.exporter.command(&["adopt", "--dry-run"]);
    assert_eq!(status, Some(0), "{output}");

    // The key survives a restart; removing it invalidates all tokens.
    world.exporter.restart();
    assert_eq!(client.get("/vms").status, 200);
    fs::remove_file(&path).unwrap();
    world.exporter.restart();
    assert_eq!(client.get("/vms").error(401), "unauthorized");
    assert_eq!(world.client().get("/vms").status, 200);

    // A key that others can read is refused and not replaced.
    let made = fs::read_to_string(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(world.exporter.try_restart().unwrap_err().code(), BROKEN_CONFIG);
    assert!(world.exporter.log().contains("chmod 0600"), "{}", world.exporter.log());
    let (status, table) = world.exporter.command(&["check-config"]);
    assert!(
        status == Some(1) && table.contains("FAIL  jwt.secret") && table.contains("-> if no other user has read it"),
        "{table}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), made);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    world.exporter.restart();
}

#[test]
fn shared_or_weak_secrets_are_refused() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let shared = format!("[hooks.sync]\nsecret = {SECRET:?}\n");
    for (secret, sections, expected) in [
        (SECRET, shared.as_str(), "jwt.secret: is the same as hooks.sync.secret, which is sent to guests"),
        (
            "YSBzZWNyZXQgdGhhdCBldmVyeSBndWVzdCBrbm93cw==",
            "[hooks.sync]\nsecret = \"a secret that every guest knows\"\n",
            "jwt.secret: is the same as hooks.sync.secret",
        ),
        ("0123456789abcdef", "", "jwt.secret: is shorter than 32 bytes"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "", "jwt.secret: has fewer than 8 different characters"),
        ("passwordpasswordpasswordpassword", "", "jwt.secret: has fewer"),
        ("secret-key-secret-key-secret-key-secret-key-", "", "jwt.secret: "),
        ("yoidthOcBauphFeykCotdidNorjAnAtGhonsabShegAtfexbavlyakPak4SletEd", "", "jwt.secret: is a published sample"),
        (SECRET, "[hooks.sync]\nsecret = \"…\"\n", "hooks.sync.secret: is the placeholder"),
    ] {
        let mut settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
        settings.secret = secret.to_owned();
        settings.sections = sections.to_owned();
        let (status, refusal) = Exporter::refusal(&settings);
        assert!(status == BROKEN_CONFIG && refusal.contains(expected), "{secret:?}: {refusal}");
        assert!(!refusal.contains(secret), "the secret is shown: {refusal}");
        let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
        assert!(status == Some(1) && table.contains(expected) && table.contains("make one"), "{table}");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    needs_root!();
    let volume = Volume::xfs(512);
    let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    certificates.issue("other");
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = Settings::new(&certificates, &manager, &[&repository]);
    settings.secret = "hush".to_owned();
    settings.jwt = "time_to_life = \"1h\"\n".to_owned();
    settings.manager = "timeout = 5\ninsecure_skip_verify = \"no\"\n".to_owned();
    settings.policy = "min_free_space = \"little\"\nexport_concurrency = 0\n".to_owned();
    settings.sections = "[hooks.sync]\nport = 70000\n[log]\nmax_files = many\n".to_owned();
    let in_the_config = [
        "jwt.time_to_life: unknown field `time_to_life`; did you mean `time_to_live`?",
        "jwt.secret: is shorter than 32 bytes",
        "manager.timeout: is a whole number; expected text in quotes",
        "manager.insecure_skip_verify: is text; expected true or false, without quotes",
        "policy.min_free_space: ",
        "policy.export_concurrency: ",
        "hooks.sync.port: is 70000; expected a whole number from 0 to 65535",
        "max_files: string values must be quoted",
    ];
    let (status, refusal) = Exporter::refusal(&settings);
    assert_eq!(status, BROKEN_CONFIG, "{refusal}");
    for expected in in_the_config {
        let line = refusal.lines().find(|line| line.contains(expected));
        let line = line.unwrap_or_else(|| panic!("{expected:?} is not in\n{refusal}"));
        assert!(line.contains("/config.toml: ") && line.contains("; "), "the file or the remedy is missing: {line}");
    }
    assert!(!refusal.contains("hush") && !refusal.contains("u16"), "{refusal}");

    // check-config also checks the values of the valid keys.
    settings.key = certificates.path("other.key");
    settings.port = Some(occupied.local_addr().unwrap().port());
    settings.db_file = Some(certificates.path("server.pem"));
    settings.ovm_endpoint = "https://127.0.0.1:1".to_owned();
    settings.paths.push("/nonexistent/nowhere".into());
    let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert_eq!(status, Some(1), "{table}");
    for expected in in_the_config {
        assert!(table.contains(expected.split("; ").next().unwrap()), "{expected:?} is not in\n{table}");
    }
    for expected in [
        "does not belong to the certificate",
        "is in use by another process",
        "is not a database of this service",
        "the manager cannot be reached",
        "repository nowhere",
    ] {
        assert!(table.contains(expected), "{expected:?} is not in\n{table}");
    }
    let remedies = table.lines().filter(|line| line.trim_start().starts_with("-> ")).count();
    let faults = table.lines().filter(|line| line.starts_with("FAIL") || line.starts_with("warn")).count();
    assert!(remedies == faults && !table.contains("change that key"), "{table}");
}

#[test]
fn start_and_check_config_report_the_same_faults() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    certificates.issue("other");
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |name: &str| certificates.path(name);
    fs::write(at("notes.txt"), "no database at all\n".repeat(100)).unwrap();
    fs::write(at("short"), "x").unwrap();
    certificates.make_version_1("version1.pem");
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    type Change<'a> = Box<dyn Fn(&mut Settings) + 'a>;
    // The change; the exit status; the expected error with the file; the remedy.
    let cases: Vec<(Change<'_>, i32, String, &str)> = vec![
        (
            Box::new(|settings| settings.db_file = Some(at("notes.txt"))),
            78,
            format!("{} is not a database of this service", at("notes.txt").display()),
            "name another db_file",
        ),
        (
            Box::new(|settings| settings.db_file = Some(at("short"))),
            78,
            "is not a database".to_owned(),
            "another db_file",
        ),
        (
            Box::new(|settings| settings.db_file = Some(at("pipe"))),
            78,
            "is not a database".to_owned(),
            "another db_file",
        ),
        (
            Box::new(|settings| settings.db_file = Some("/nonexistent/folder/db".into())),
            78,
            "the folder of /nonexistent/folder/db does not exist".to_owned(),
            "create it, or name another file",
        ),
        (
            Box::new(|settings| settings.key = at("other.key")),
            78,
            format!("{}: does not belong to the certificate {}", at("other.key").display(), at("server.pem").display()),
            "name the private key of api.tls.certificate",
        ),
        (
            Box::new(|settings| settings.certificate = at("version1.pem")),
            78,
            format!("{} is an X.509 certificate of an old version", at("version1.pem").display()),
            "make one of version 3 with subjectAltName",
        ),
        (
            Box::new(|settings| settings.certificate = at("missing.pem")),
            78,
            format!("{}: ", at("missing.pem").display()),
            "name the service's certificate",
        ),
        (
            Box::new(|settings| settings.port = Some(occupied.local_addr().unwrap().port())),
            1,
            "is in use by another process".to_owned(),
            "or name another port",
        ),
        (
            Box::new(|settings| settings.manager = format!("ca_certificate = {:?}\n", at("notes.txt"))),
            78,
            format!("{}: holds no certificate in PEM", at("notes.txt").display()),
            "name a readable certificate in PEM format",
        ),
    ];
    for (change, expected_status, found, remedy) in cases {
        let mut settings = Settings::new(&certificates, &manager, &[&at("repo")]);
        change(&mut settings);
        let (status, refusal) = Exporter::refusal(&settings);
        assert_eq!(status, Some(expected_status), "{refusal}");
        assert!(refusal.contains(&found), "{refusal} lacks {found:?}");
        // The start names the same remedy, except for an unreadable CA certificate.
        assert!(refusal.contains(remedy) || found.contains("holds no"), "{refusal} lacks {remedy:?}");
        let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
        assert!(status == Some(1) && table.contains(&found) && table.contains(remedy), "{found:?}: {table}");
    }
    assert_eq!(fs::read(at("short")).unwrap(), b"x", "a foreign file was changed");
}

#[test]
fn foreign_bind_address_is_rejected() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let mut settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
    settings.bind = "192.0.2.7".to_owned();
    let (status, refusal) = Exporter::refusal(&settings);
    let expected = "192.0.2.7 is not an address of this host; name one that `ip address` lists";
    assert!(status == Some(1) && refusal.contains("api.bind") && refusal.contains(expected), "{refusal}");
    let (_, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert!(table.contains("192.0.2.7 is not an address of this host"), "{table}");
}

#[test]
fn untrusted_manager_is_reported_with_its_fingerprint() {
    needs_root!();
    let certificates = Certificates::new();
    certificates.issue_self_signed_ca("manager");
    certificates.issue_for("elsewhere", &["elsewhere.example"]);
    let manager = Manager::start_with(&certificates, "manager");
    let elsewhere = Manager::start_with(&certificates, "elsewhere");
    let host = vec![("SSL_CERT_FILE".to_owned(), certificates.ca().display().to_string())];
    let print = |name: &str| {
        let file = certificates.path(format!("{name}.pem"));
        let print =
            Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(file).output();
        let text = String::from_utf8(print.unwrap().stdout).unwrap();
        format!("sha256:{}", text.split_once('=').unwrap().1.trim())
    };
    for (manager, name, trust, expected) in [
        (&manager, "manager", format!("fingerprint = \"sha256:{}\"", "0".repeat(64)), "is not the one that is named"),
        (&manager, "manager", String::new(), "is self-signed"),
        (&manager, "manager", format!("ca_certificate = {:?}", certificates.ca()), "ca.pem, and is self-signed"),
        (&elsewhere, "elsewhere", String::new(), "is for other names than 127.0.0.1"),
    ] {
        let mut settings = Settings::new(&certificates, manager, &[&certificates.path("repo")]);
        settings.manager = trust;
        settings.environment = host.clone();
        let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
        let remedy = format!("manager.fingerprint = \"{}\"", print(name));
        assert!(status == Some(1) && table.contains(expected) && table.contains(&remedy), "{expected}: {table}");
        // The service starts, and logs that no one can log in.
        let mut exporter = Exporter::start(settings);
        let log = eventually_some("the manager answers within the time limit of the start", || {
            // On a loaded machine the log may be empty still, or the request may time out.
            let log = exporter.log();
            let is_late = log.is_empty() || !log.contains(expected) && log.contains("the manager does not respond");
            is_late.then(|| exporter.restart());
            (!is_late).then_some(log)
        });
        assert!(log.contains("log-in is not possible") && log.contains(expected), "{log}");
        assert!(log.contains("manager.fingerprint"), "{log}");
    }
}

#[test]
fn manager_that_accepts_anonymous_requests_is_refused() {
    needs_root!();
    let certificates = Certificates::new();
    let port = free_port();
    let manager = Manager::start_at(&certificates, "server", &format!("127.0.0.1:{port}"));
    for status in [200, 204] {
        manager.set_behavior(ManagerBehavior::Status(status));
        let settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
        let (status, refusal) = Exporter::refusal(&settings);
        assert!(status == BROKEN_CONFIG && refusal.contains("accepts requests without a password"), "{refusal}");
        assert!(refusal.contains("ovm_endpoint") && refusal.contains("manager.path"), "{refusal}");
    }
    // An unavailable manager does not prevent the start; it is checked before the first log-in is accepted.
    for behavior in [ManagerBehavior::ServerError, ManagerBehavior::Slow] {
        manager.set_behavior(behavior);
        let exporter = Exporter::start(Settings::new(&certificates, &manager, &[&certificates.path("repo")]));
        let client = Client::new(&exporter, &certificates);
        manager.set_behavior(ManagerBehavior::Status(200));
        assert_eq!(client.try_log_in(USER, "anything").error(502), "manager_unavailable");
        assert!(exporter.log().contains("accepts requests without a password"), "{}", exporter.log());
        manager.set_behavior(ManagerBehavior::Good);
        assert_eq!(client.try_log_in(USER, "anything").error(401), "unauthorized");
        assert_eq!(client.try_log_in(USER, PASSWORD).status, 200);
    }
    let settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
    drop(manager);
    let exporter = Exporter::start(settings);
    assert!(exporter.log().contains("log-in is not possible"), "{}", exporter.log());
}

#[test]
fn service_files_in_a_repository_are_reported() {
    needs_root!();
    let world = World::with(512, |settings| {
        let repository = settings.paths[0].clone();
        std::os::unix::fs::symlink(&repository, settings.certificate.with_file_name("link")).unwrap();
        settings.db_file = Some(settings.certificate.with_file_name("link/exporter.db"));
        settings.top = format!("log_file = {:?}\n", repository.join("exporter.log"));
        settings.sections = format!("[audit]\nfile = {:?}\n", repository.join("audit.json"));
    });
    let log = fs::read_to_string(world.repository.join("exporter.log")).unwrap();
    let (_, table) = world.exporter.command(&["check-config"]);
    for (key, file) in [("db_file", "link/exporter.db"), ("log_file", "exporter.log"), ("audit.file", "audit.json")] {
        let noticed = |line: &str| line.contains(key) && line.contains(file) && line.contains("is in the repository");
        assert!(log.lines().any(noticed), "{log}");
        assert!(table.lines().any(|line| line.starts_with("warn") && noticed(line)), "{table}");
    }
    let world = World::new(512);
    assert!(!world.exporter.log().contains("is in the repository"), "{}", world.exporter.log());
    // No key is generated in a repository, where other servers can read it.
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.secret.clear();
    settings.db_file = Some(world.repository.join("other.db"));
    let (status, refusal) = Exporter::refusal(&settings);
    let expected = "other.db.jwt-secret would be in a repository";
    assert!(status == BROKEN_CONFIG && refusal.contains(expected), "{refusal}");
    let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert!(status == Some(1) && table.contains(expected), "{table}");
}

#[test]
fn path_below_a_repository_is_refused() {
    needs_root!();
    let volume = Volume::xfs(512);
    let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
    let sibling = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60719");
    let link = volume.mount_point.join("link");
    std::os::unix::fs::symlink(&repository, &link).unwrap();
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let disks = repository.join("VirtualDisks");
    for (paths, expected) in [
        (vec![&repository, &sibling, &disks], "lies below"),
        (vec![&volume.mount_point, &repository], "lies below"),
        (vec![&disks], "is a folder in the repository"),
    ] {
        let paths: Vec<_> = paths.into_iter().map(PathBuf::as_path).collect();
        let (status, refusal) = Exporter::refusal(&Settings::new(&certificates, &manager, &paths));
        assert!(status == BROKEN_CONFIG && refusal.contains(expected), "{paths:?}: {refusal}");
        assert!(refusal.contains("repositories.paths: ") && refusal.contains("; "), "{refusal}");
    }
    // Recognized only after symbolic links are resolved.
    let through = link.join("VirtualDisks");
    let (status, refusal) = Exporter::refusal(&Settings::new(&certificates, &manager, &[&repository, &through]));
    assert!(status == BROKEN_CONFIG && refusal.contains("lies below"), "{refusal}");
}
