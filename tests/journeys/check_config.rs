//! `check-config` finds faults before the service is started, and names a remedy for each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{
    Certificates, Exporter, HookDir, Manager, ManagerBehavior, Settings, Volume, World, make_repository,
};
use crate::needs_root;

/// The line of the table about `what`, and the remedy in the next line.
fn line<'a>(table: &'a str, what: &str) -> (&'a str, Option<&'a str>) {
    let mut lines = table.lines().skip_while(|line| !line.get(6..).is_some_and(|rest| rest.starts_with(what)));
    let line = lines.next().unwrap_or_else(|| panic!("no {what} in\n{table}"));
    (line, lines.next().and_then(|next| next.trim_start().strip_prefix("-> ")))
}

#[test]
fn valid_config_passes_with_and_without_the_service_running() {
    needs_root!();
    let mut world = World::new(512);
    fs::set_permissions(world.certificates.path("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::read_dir(&world.repository).unwrap().count();
    let (status, table) = world.exporter.command(&["check-config"]);
    assert_eq!(status, Some(0), "{table}");
    for (what, expected) in [
        ("db_file", "the service is running"),
        ("api.bind", "the service is running"),
        ("ovm_endpoint", "responds"),
        ("repository 0004fb", "xfs"),
        ("api.tls.certificate", "valid until"),
    ] {
        assert!(line(&table, what).0.contains(expected), "{table}");
    }
    assert_eq!(fs::read_dir(&world.repository).unwrap().count(), before, "check-config left a file in the repository");
    let settings = std::mem::replace(
        world.exporter.settings(),
        Settings::new(&world.certificates, &world.manager, &[&world.repository]),
    );
    let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert_eq!(status, Some(0), "{table}");
    assert!(
        line(&table, "db_file").0.contains("does not exist yet") && table.ends_with("No problems found.\n"),
        "{table}"
    );
}

#[test]
fn each_fault_has_a_line_with_a_remedy() {
    needs_root!();
    let volume = Volume::xfs_with(512, &["-m", "reflink=0"]);
    let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    certificates.issue("other");
    certificates.issue_until("ended", 2020);
    let bolt = certificates.path("bolt.db");
    let mut page = vec![0; 4096];
    page[16..20].copy_from_slice(&0xED0C_DAED_u32.to_ne_bytes());
    fs::write(&bolt, &page).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = listener.local_addr().unwrap().port();

    type Change<'a> = Box<dyn Fn(&mut Settings) + 'a>;
    let cases: Vec<(&str, &str, Change<'_>)> = vec![
        ("config", "jwt.secret: is shorter", Box::new(|settings| settings.secret = "short".to_owned())),
        ("config", "unknown field", Box::new(|settings| settings.manager += "unknown = 1\n")),
        ("api.tls", "No such file", Box::new(|settings| settings.key = "/nonexistent".into())),
        ("api.tls", "key", Box::new(|settings| settings.key = certificates.path("other.key"))),
        (
            "api.tls.certificate",
            "expired at",
            Box::new(|settings| {
                settings.certificate = certificates.path("ended.pem");
                settings.key = certificates.path("ended.key");
            }),
        ),
        ("db_file", "the folder of", Box::new(|settings| settings.db_file = Some("/nonexistent/x.db".into()))),
        ("db_file", "(Bolt)", Box::new(|settings| settings.db_file = Some(bolt.clone()))),
        ("api.bind", "in use", Box::new(|settings| settings.port = Some(occupied))),
        ("log_file", "is not a regular file", Box::new(|settings| settings.top += "log_file = \"/tmp\"\n")),
        ("audit.file", "is not a regular file", Box::new(|settings| settings.sections += "[audit]\nfile = \"/tmp\"\n")),
        (
            "audit.file",
            "No such file",
            Box::new(|settings| settings.sections += "[audit]\nfile = \"/nonexistent/audit.jsonl\"\n"),
        ),
        // Paths below a repository, recognized by the parent in the config, by the folder's name, or by its siblings.
        ("config", "lies below", Box::new(|settings| settings.paths.push(repository.join("VirtualDisks")))),
        (
            "repositories",
            "is a folder in the repository",
            Box::new(|settings| settings.paths = vec![repository.join("VirtualDisks")]),
        ),
        (
            "repository ISOs",
            "is a folder in the repository",
            Box::new(|settings| settings.paths = vec![repository.join("ISOs")]),
        ),
        ("ovm_endpoint", "refused", Box::new(|settings| settings.ovm_endpoint = "https://127.0.0.1:1".to_owned())),
        (
            "ovm_endpoint",
            "certificate",
            Box::new(|settings| {
                settings.manager = format!("ca_certificate = {:?}\n", certificates.path("other.pem"));
            }),
        ),
        ("ovm_endpoint", "404", Box::new(|settings| settings.manager += "path = \"/elsewhere\"\n")),
        ("repositories", "no repository supports snapshots", Box::new(|_| {})),
    ];
    for (what, expected, change) in cases {
        let mut settings = Settings::new(&certificates, &manager, &[Path::new(&repository)]);
        change(&mut settings);
        let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
        let (found, remedy) = line(&table, what);
        assert!(found.starts_with("FAIL") && found.contains(expected), "{expected}:\n{table}");
        assert!(remedy.is_some_and(|remedy| !remedy.is_empty()), "{expected}:\n{table}");
        assert_eq!(status, Some(1), "{table}");
    }
    assert_eq!(fs::read(&bolt).unwrap(), page, "the database of the original exporter was changed");
    // A fault of only one repository is a warning.
    let mut settings = Settings::new(&certificates, &manager, &[Path::new(&repository)]);
    settings.paths.push("/nonexistent/nowhere".into());
    let (_, table) = Exporter::command_alone(&settings, &["check-config"]);
    for (what, expected) in [("repository nowhere", "is it mounted"), ("repository 0004fb", "without reflinks")] {
        let (found, remedy) = line(&table, what);
        assert!(found.starts_with("warn") && found.contains(expected) && remedy.is_some(), "{table}");
    }
    let mut settings = Settings::new(&certificates, &manager, &[Path::new(&repository)]);
    settings.sections += &format!("[audit]\nfile = {:?}\n", repository.join("audit.jsonl"));
    let (_, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert!(line(&table, "audit.file").0.starts_with("ok"), "{table}");
    assert!(table.lines().any(|line| line.contains("audit.jsonl is in the repository")), "{table}");
    // A manager that answers anonymous requests accepts any password.
    manager.set_behavior(ManagerBehavior::Status(204));
    let settings = Settings::new(&certificates, &manager, &[Path::new(&repository)]);
    let (_, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert!(line(&table, "ovm_endpoint").0.contains("without a password"), "{table}");
    let (status, output) = Exporter::command_alone(
        &Settings::new(&certificates, &manager, &[&repository]),
        &["check-config", "--config", "/nonexistent.toml"],
    );
    assert_ne!(status, Some(0), "{output}");
}

#[test]
fn skipped_hooks_are_listed_with_the_reason() {
    needs_root!();
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let hooks = HookDir::new();
    hooks.put("10-good", "touch $OUT/called");
    hooks.put("20-writable", "");
    fs::set_permissions(hooks.directory().join("20-writable"), fs::Permissions::from_mode(0o775)).unwrap();
    let settings = |sync: &str| {
        let mut settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
        settings.sections = hooks.section("") + sync;
        settings
    };
    let check = |sync: &str| Exporter::command_alone(&settings(sync), &["check-config"]).1;
    for name in ["10-good~", "10-good.rpmsave", "10-good.sample", ".10-good.swp"] {
        hooks.put(name, "touch $OUT/called");
    }
    let table = check("");
    for (what, found, remedy) in [
        ("hooks.directory", "1 hooks", false),
        ("hooks.post_on_failure", "only called if its pre printed a line \"quiesced\"", true),
        ("hook 10-good~", "passed over", true),
        ("hook 10-good.rpmsave", "passed over", true),
        ("hook 10-good.sample", "passed over", true),
        ("hook .10-good.swp", "passed over", false),
        ("hook 10-good", "is run", false),
        ("hook 20-writable", "is not run: it can be written by others", true),
    ] {
        let (line, found_remedy) = line(&table, what);
        assert!(line.contains(found) && found_remedy.is_some() == remedy, "{what}:\n{table}");
    }
    assert!(!hooks.at("called").exists(), "check-config called a hook");

    let table = check(&format!("[hooks.sync]\nsecret = \"hush\"\nca_certificate = {:?}\n", certificates.ca()));
    assert!(line(&table, "hooks.sync").0.starts_with("ok"), "{table}");
    let (found, remedy) = line(&table, "hooks.sync.secret");
    assert!(found.starts_with("warn") && found.contains("is shorter than 32 bytes") && remedy.is_some(), "{table}");
    let strong = "[hooks.sync]\nsecret = \"a secret that every guest with the tag is sent\"\n";
    assert!(!check(strong).contains("hooks.sync.secret"), "a warning about a strong secret");
    let table = check("[hooks.sync]\nsecret = \"hush\"\nca_certificate = \"/nonexistent\"\n");
    assert!(line(&table, "hooks.sync").0.starts_with("FAIL"), "{table}");
    let table = check("[hooks.sync]\nsecret = \"hush\"\ninsecure_skip_verify = true\n");
    assert!(line(&table, "hooks.sync.insecure_skip_verify").0.starts_with("warn"), "{table}");
    let table = check("[hooks.sync]\nsecret = \"hush\"\nhosts = [\"*\"]\n");
    let (found, remedy) = line(&table, "hooks.sync.hosts");
    assert!(found.starts_with("warn") && remedy.is_some(), "{table}");
    assert!(!table.contains("hush"));
    fs::set_permissions(hooks.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let table = check("");
    assert!(line(&table, "hooks.directory").0.contains("no hook of this folder is run"), "{table}");
    fs::remove_dir_all(hooks.directory()).unwrap();
    let table = check("");
    assert!(line(&table, "hooks.directory").0.contains("No such file"), "{table}");
}
