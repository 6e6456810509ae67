//! The operator's commands on a terminal: questions, widths, and a status that is shown again and again.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{Client, MB, OTHER_VM, VM, World, define_vm_with, eventually, eventually_within, write_at};
use crate::needs_root;

/// A command on a terminal of its own, by script(1).
struct Terminal {
    script: Child,
    typescript: PathBuf,
    _dir: TempDir,
}

impl Terminal {
    fn run(world: &World, columns: usize, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let typescript = dir.path().join("typescript");
        let binary = env!("CARGO_BIN_EXE_coriolis-ovm-exporter");
        let config = world.exporter.log_path().with_file_name("config.toml");
        let (arguments, config) = (arguments.join(" "), config.display());
        let line = format!("stty cols {columns} rows 40; exec {binary} {arguments} --config {config}");
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &line]).arg(&typescript);
        script.env("SHELL", "/bin/sh").env("LC_ALL", "C.UTF-8").env("TERM", "xterm");
        let script = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Self { script, typescript, _dir: dir }
    }

    /// All that the command wrote so far.
    fn text(&self) -> String {
        fs::read(&self.typescript).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn shows(&self, expected: &str) {
        eventually(&format!("the terminal shows {expected:?}"), || self.text().contains(expected));
    }

    /// What the terminal shows after the last of these texts.
    fn shows_after(&self, last: &str, expected: &str) {
        let is_shown = || self.text().rsplit_once(last).is_some_and(|(_, after)| after.contains(expected));
        eventually(&format!("the terminal shows {expected:?} after {last:?}"), is_shown);
    }

    fn type_keys(&mut self, keys: &str) {
        let input = self.script.stdin.as_mut().unwrap();
        input.write_all(keys.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// Waits until the command ends; returns its status.
    fn end(&mut self) -> Option<i32> {
        let mut status = None;
        eventually_within(Duration::from_secs(60), "the command ends", || {
            status = self.script.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
        if std::thread::panicking() {
            eprintln!("---- the terminal ----\n{:?}", self.text());
        }
    }
}

#[test]
fn a_watched_status_shows_downloads_and_survives_a_restart() {
    needs_root!();
    let mut world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 32 * MB)])[0];
    write_at(disk, 0, &vec![3; 32 << 20]);
    let id = Client::local(&world.exporter).take_snapshot_id();
    let mut download = UnixStream::connect(world.exporter.socket()).unwrap();
    write!(download, "GET /api/v1/vms/{VM}/snapshots/{id}/disks/a.img HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    download.read_exact(&mut vec![0; 8 << 20]).unwrap();

    let mut terminal = Terminal::run(&world, 200, &["status", "--watch", "0.2"]);
    terminal.shows("downloads: 1 of 12 running");
    let text = terminal.text();
    assert!(text.contains("\x1b[?1049h"), "not on the alternate screen: {text:?}");
    terminal.shows(&id[..8]);
    let text = terminal.text();
    let row = text.lines().find(|line| line.contains(&id[..8])).unwrap();
    for expected in ["running  web-1", "a.img", "██", " %", "MiB of 32.00 MiB", "/s", "root", "unix:uid=0,pid="] {
        assert!(row.contains(expected), "{row:?} lacks {expected:?}");
    }

    world.exporter.kill();
    terminal.shows("The service does not respond.");
    terminal.shows("its last answer: ");
    world.exporter.restart();
    terminal.shows_after("its last answer: ", "downloads: 0 of 12 running");
    terminal.type_keys("\x03");
    assert_eq!(terminal.end(), Some(0));
    let text = terminal.text();
    let restored = text.rfind("\x1b[?25h\x1b[?1049l").expect("the terminal is not restored");
    assert!(!text[restored..].contains("downloads"), "{text:?}");

    // If it does not respond at the start, it may do so later.
    world.exporter.kill();
    let mut terminal = Terminal::run(&world, 80, &["status", "--watch"]);
    terminal.shows("The service does not respond.");
    terminal.type_keys("\x03");
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn destructive_commands_ask_on_a_terminal() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = Client::local(&world.exporter);
    let ids = [client.take_snapshot_id(), client.take_snapshot_id()];
    for answer in ["\n", "n\n", "nonsense\n"] {
        let mut terminal = Terminal::run(&world, 100, &["snapshots", "purge", "web-1"]);
        terminal.shows("Delete these 2 snapshots? [y/N]");
        assert!(ids.iter().all(|id| terminal.text().contains(id)), "{}", terminal.text());
        terminal.type_keys(answer);
        assert_eq!(terminal.end(), Some(1));
        assert!(terminal.text().contains("nothing is deleted"), "{}", terminal.text());
        assert_eq!(client.snapshot_ids(), ids);
    }
    let mut terminal = Terminal::run(&world, 100, &["snapshots", "delete", VM, &ids[0][..8]]);
    terminal.shows("Delete this snapshot? [y/N]");
    terminal.type_keys("y\n");
    assert_eq!(terminal.end(), Some(0));
    assert_eq!(client.snapshot_ids(), [ids[1].clone()]);
}

#[test]
fn tables_and_strips_are_as_wide_as_the_terminal() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 2 * MB)]);
    define_vm_with(&world.repository, OTHER_VM, &["'phy:/dev/null,xvda,w'".to_owned()]);
    let client = Client::local(&world.exporter);
    let (first, second) = (client.take_snapshot_id(), client.take_snapshot_id());
    let mut terminal = Terminal::run(&world, 90, &["vms"]);
    assert_eq!(terminal.end(), Some(0));
    let text = terminal.text();
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("NAME")).collect();
    let reason = table.iter().position(|line| line.contains(OTHER_VM)).unwrap();
    assert!(table[reason + 1].starts_with("      "), "the reason is not wrapped: {table:?}");
    assert!(table.iter().all(|line| line.trim_end().chars().count() <= 90), "{table:?}");
    let mut terminal = Terminal::run(&world, 50, &["snapshots", "diff", VM, &first, &second]);
    assert_eq!(terminal.end(), Some(0));
    let text = terminal.text();
    assert!(text.lines().any(|line| line.trim_end() == "·".repeat(50)), "{text}");
}
