//! What the packages contain.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{NAME, here, package};
use crate::harness::{output, run};
use crate::{needs, needs_root};

/// The pages of all commands, as `man1/coriolis-ovm-exporter-snapshots-list.1`.
fn pages() -> BTreeSet<String> {
    fn add(command: &clap::Command, name: &str, pages: &mut BTreeSet<String>) {
        pages.insert(format!("man1/{name}.1"));
        for sub in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            add(sub, &format!("{name}-{}", sub.get_name()), pages);
        }
    }
    let mut pages = BTreeSet::from([format!("man5/{NAME}.toml.5")]);
    add(&coriolis_ovm_exporter::testing::command(), NAME, &mut pages);
    pages
}

/// A folder with what a .deb contains.
fn unpacked(package: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(dir.path()));
    dir
}

#[test]
fn every_command_and_every_key_has_its_manual_and_completions_work() {
    needs_root!();
    let package = package(".deb");
    needs!(package.is_some(), "the packages (make packages)");
    let dir = unpacked(&package.unwrap());
    let share = dir.path().join("usr/share");
    let read = |page: &str| output(Command::new("gzip").arg("-dc").arg(share.join(format!("man/{page}.gz"))));
    let expected = pages();
    let found: BTreeSet<String> = ["man1", "man5"]
        .into_iter()
        .flat_map(|folder| {
            let entries = fs::read_dir(share.join("man").join(folder)).unwrap();
            entries.map(move |entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()))
        })
        .map(|name| name.trim_end_matches(".gz").to_owned())
        .collect();
    assert_eq!(found, expected);
    for page in &expected {
        let path = dir.path().join("page");
        fs::write(&path, read(page)).unwrap();
        let warnings = output(Command::new("sh").arg("-c").arg("groff -man -ww -z -Kutf8 \"$0\" 2>&1").arg(&path));
        assert_eq!(warnings, "", "{page}");
    }
    // Each key of the sample config, with its default.
    let page = read(&format!("man5/{NAME}.toml.5")).replace("\\-", "-").replace("\\&", "").replace("\\fR", "\n");
    let sample = fs::read_to_string(here("config.example.toml")).unwrap();
    let keys: Vec<&str> = sample.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(keys.len() > 60, "{keys:?}");
    for line in keys {
        let shown = page.lines().any(|it| it.replace("\\fB", "").contains(line));
        assert!(shown, "{line} is not in the page");
    }

    let script = format!(
        ". {}; COMP_WORDS=({NAME} snapshots d); COMP_CWORD=2; function=$(complete -p {NAME}); \
         function=${{function#*-F }}; ${{function%% *}} {NAME} d snapshots; echo \"${{COMPREPLY[@]}}\"",
        share.join("bash-completion/completions").join(NAME).display()
    );
    assert_eq!(output(Command::new("bash").args(["-c", &script])), "delete diff\n");
    for (shell, file) in [("zsh", "zsh/vendor-completions/_"), ("fish", "fish/vendor_completions.d/")] {
        let ending = if shell == "fish" { ".fish" } else { "" };
        let path = share.join(format!("{file}{NAME}{ending}"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("backup-db") && !text.contains("hook-launcher"), "{}", path.display());
    }
}

#[test]
fn deb_has_no_faults_that_lintian_finds() {
    needs_root!();
    let package = package(".deb");
    needs!(package.is_some(), "the packages (make packages)");
    let package = package.unwrap();
    // Without the overrides of the package: those must still be needed.
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]).arg(&package);
    let result = lintian.output().unwrap();
    let said = String::from_utf8_lossy(&result.stdout);
    assert!(result.status.success(), "{said}{}", String::from_utf8_lossy(&result.stderr));
    // The config contains no secret that hosts would share.
    let dir = unpacked(&package);
    let config = fs::read_to_string(dir.path().join("etc").join(NAME).join("config.toml")).unwrap();
    let config: toml::Table = config.parse().unwrap();
    assert_eq!(config["jwt"]["secret"].as_str(), Some(""));
    assert_eq!(config["hooks"]["sync"]["secret"].as_str(), Some(""));
    assert_eq!(config["db_file"].as_str(), Some("/var/lib/coriolis-ovm-exporter/exporter.db"));
    let licences = dir.path().join("usr/share/doc").join(NAME).join("licences");
    let licences = fs::read_to_string(licences).unwrap();
    for name in ["aws-lc-sys", "redb", "tokio", "serde", "swagger-ui"] {
        assert!(licences.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} has no licence");
    }
}

#[test]
fn rpm_is_installed_verified_and_removed_with_rpm() {
    needs_root!();
    needs!(here("target/debian/made-by").exists(), "a Debian (tests/packages/prepare)");
    let package = package(".rpm");
    needs!(package.is_some(), "the packages (make packages)");
    let package = package.unwrap();
    let rpm = |arguments: &[&str]| output(Command::new("rpm").args(arguments).arg(&package));
    assert!(rpm(&["--checksig"]).contains("digests OK"));
    assert_eq!(rpm(&["-qp", "--configfiles"]), format!("/etc/{NAME}/config.toml\n"));
    // The rpm of EL7 knows these, and gzip.
    let known = ["CompressedFileNames", "FileDigests", "PayloadFilesHavePrefix"];
    for line in rpm(&["-qp", "--requires"]).lines().filter_map(|line| line.strip_prefix("rpmlib(")) {
        assert!(known.contains(&line.split(')').next().unwrap()), "{line}");
    }
    assert_eq!(rpm(&["-qp", "--queryformat", "%{PAYLOADCOMPRESSOR} %{LICENSE}"]), "gzip Apache-2.0");
    let linted = output(Command::new("rpmlint").arg("--config").arg(here("packaging/rpmlint.toml")).arg(&package));
    assert!(linted.contains(" 0 errors, 0 warnings"), "{linted}");
    let scripts = rpm(&["-qp", "--scripts"]);
    assert!(scripts.contains("try-restart") && scripts.contains("first-steps"), "{scripts}");

    // No distribution with rpm can be had here, so the root is a Debian: its rpm database is empty, therefore --nodeps. The
    // scripts run there.
    let dir = tempfile::tempdir().unwrap();
    let script = "set -e; mount -t tmpfs tmpfs \"$1\"; mkdir \"$1/up\" \"$1/work\" \"$1/root\"\n\
                  mount -t overlay -o \"lowerdir=$2,upperdir=$1/up,workdir=$1/work\" overlay \"$1/root\"";
    run(Command::new("sh").args(["-c", script, "sh"]).arg(dir.path()).arg(here("target/debian/root")));
    let root = dir.path().join("root");
    let inside = |arguments: &[&str], files: &[&Path]| {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(&root).args(arguments).args(files);
        let result = command.output().unwrap();
        let said = [result.stdout, result.stderr].concat();
        (result.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (done, said) = inside(&["--install", "--nodeps"], &[&package]);
    assert!(done && said.contains("not started yet"), "{said}");
    assert_eq!(inside(&["--verify", "--nodeps", NAME], &[]), (true, String::new()));
    let etc = root.join("etc").join(NAME);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&etc), mode(&etc.join("config.toml")), mode(&etc.join("srv-key.pem"))), (0o700, 0o600, 0o600));
    let version = output(Command::new("chroot").arg(&root).arg(format!("/usr/bin/{NAME}")).arg("--version"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    fs::write(etc.join("config.toml"), "# changed\n").unwrap();
    let (done, said) = inside(&["--erase", NAME], &[]);
    assert!(done && said.contains("all snapshots"), "{said}");
    assert!(!root.join("usr/bin").join(NAME).exists());
    assert_eq!(fs::read_to_string(etc.join("config.toml.rpmsave")).unwrap(), "# changed\n");
    assert!(etc.join("srv-key.pem").exists());
    run(Command::new("umount").arg(&root));
    run(Command::new("umount").arg(dir.path()));
}

#[test]
fn archive_for_el6_installs_and_keeps_a_changed_config() {
    needs_root!();
    let archive = package("-el6.tar.gz");
    needs!(archive.is_some(), "the packages (make packages)");
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xzf").arg(archive.unwrap()).arg("-C").arg(dir.path()));
    let folder = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let root = dir.path().join("root");
    let install = || output(Command::new(folder.join("install")).env("DESTDIR", &root));
    let said = install();
    assert!(said.contains("start coriolis-ovm-exporter"), "{said}");
    let file = |path: &str| -> PathBuf { root.join(path) };
    for (path, mode) in [
        ("usr/local/bin/coriolis-ovm-exporter", 0o755),
        ("etc/init/coriolis-ovm-exporter.conf", 0o644),
        ("etc/logrotate.d/coriolis-ovm-exporter", 0o644),
        ("etc/coriolis-ovm-exporter", 0o700),
        ("etc/coriolis-ovm-exporter/config.toml", 0o600),
        ("etc/coriolis-ovm-exporter/srv-key.pem", 0o600),
        ("usr/local/share/man/man5/coriolis-ovm-exporter.toml.5", 0o644),
        ("var/lib/coriolis-ovm-exporter", 0o700),
    ] {
        assert_eq!(fs::metadata(file(path)).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
    let config = file("etc/coriolis-ovm-exporter/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("log_file = \"/var/log/coriolis-ovm-exporter/exporter.log\""), "upstart discards the log");
    fs::write(&config, "# changed\n").unwrap();
    let job = file("etc/init/coriolis-ovm-exporter.conf");
    let shipped = fs::read_to_string(&job).unwrap();
    let longer = shipped.replace("kill timeout 300", "kill timeout 900");
    assert_ne!(longer, shipped);
    fs::write(&job, &longer).unwrap();
    let said = install();
    assert!(said.contains("upgraded") && said.contains("stays as it is"), "{said}");
    assert_eq!(fs::read_to_string(&job).unwrap(), longer);
    assert_eq!(fs::read_to_string(&config).unwrap(), "# changed\n");
    assert_eq!(fs::read_to_string(file("etc/coriolis-ovm-exporter/config.toml.new")).unwrap(), text);
    // The program that the job starts is the one that was installed.
    let job = fs::read_to_string(file("etc/init/coriolis-ovm-exporter.conf.rpmnew")).unwrap();
    assert_eq!(job, shipped);
    assert!(job.contains("exec /usr/local/bin/coriolis-ovm-exporter --config /etc/coriolis-ovm-exporter/config.toml"));
    let rules = file("etc/logrotate.d/coriolis-ovm-exporter");
    run(Command::new("logrotate").arg("--debug").arg(rules));
}
