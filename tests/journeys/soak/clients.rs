//! The clients. Each repeats one kind of work until the test ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use nix::fcntl::{FallocateFlags, fallocate};
use reqwest::Method;
use reqwest::blocking::RequestBuilder;
use serde_json::Value;

use super::site::{DISK_SIZE, Known, Moments, Site, Vm, faulty};
use crate::harness::{Answer, Backup, Client, PASSWORD, Random, USER, chunks, connect, for_a_while, output, text};

/// Longer than the clock leaps.
const TTL: &str = r#"{"ttl": "12h"}"#;

/// Snapshots of a VM that are kept at a service.
const KEPT: usize = 3;

/// One client.
struct Worker<'a> {
    site: &'a Site,
    service: usize,
    client: Client,
    random: Random,
}

type Work = fn(&mut Worker);

/// The kinds of clients besides those that create snapshots, and how many there are of each.
const KINDS: [(Work, usize); 9] = [
    (read_range, 18),
    (read_whole, 4),
    (compare, 10),
    (checksum, 4),
    (disconnect, 4),
    (list, 4),
    (log_in, 4),
    (run_curl, 4),
    (send_nonsense, 2),
];

/// Starts 64 clients: one for each of the 8 VMs, which creates and deletes its snapshots, one for each of the 2 VMs that
/// are backed up, and 54 others.
pub fn start<'scope>(
    site: &'scope Site,
    scope: &'scope Scope<'scope, '_>,
    stop: &'scope AtomicBool,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let vms = site.places.iter().enumerate().flat_map(|(place, found)| (0..found.vms.len()).map(move |vm| (place, vm)));
    let mut works: Vec<Box<dyn Fn(&mut Worker) + Send>> = vms
        .map(|(place, vm)| match site.places[place].vms[vm].is_backed_up {
            true => Box::new(backed_up(site, vm % 2, &site.places[place].vms[vm])) as _,
            false => Box::new(move |worker: &mut Worker| change_vm(worker, place, vm)) as _,
        })
        .collect();
    for (work, count) in KINDS {
        works.extend((0..count).map(|_| Box::new(work) as _));
    }
    let start_one = |(number, work): (usize, Box<dyn Fn(&mut Worker) + Send>)| {
        scope.spawn(move || {
            let service = number % 2;
            let random = Random(number as u64);
            let mut worker = Worker { site, service, client: site.client(service), random };
            while !stop.load(Ordering::Relaxed) && !site.tally.has_failed() {
                work(&mut worker);
            }
        })
    };
    works.into_iter().enumerate().map(start_one).collect()
}

/// Writes to the disk of a VM, creates a snapshot at one of the services, and deletes the oldest one.
fn change_vm(worker: &mut Worker, place: usize, vm: usize) {
    let site = worker.site;
    worker.service = worker.random.below(2) as usize;
    worker.client = site.client(worker.service);
    let found = &site.places[place].vms[vm];
    // A repository with a fault may refuse this.
    let content = File::options().read(true).write(true).open(&found.disk).and_then(|disk| {
        change(&disk, &mut worker.random)?;
        // The death of a repository loses what was not written back, also between this and the snapshot.
        if place == faulty::DYING {
            disk.sync_data()?;
        }
        fs::read(&found.disk)
    });
    let Ok(content) = content else { return for_a_while(Duration::from_millis(50)) };
    let moments = site.moments(place);
    let route = format!("/api/v1/vms/{}/snapshots", found.id);
    let answer = worker.ask("create", &moments, place, None, worker.client.request(Method::POST, &route).body(TTL));
    if let Some(answer) = answer {
        let id = text(&answer.json()["id"]);
        let deleted = AtomicBool::new(false);
        let known = Known { service: worker.service, place, vm, id, content, deleted };
        site.known.lock().unwrap().push(Arc::new(known));
    }
    let kept = site.snapshots_of(worker.service, place, vm);
    for known in &kept[..kept.len().saturating_sub(KEPT)] {
        known.deleted.store(true, Ordering::SeqCst);
        let moments = site.moments(place);
        let request = worker.client.request(Method::DELETE, &format!("{route}/{}", known.id));
        if worker.ask("delete", &moments, place, None, request).is_some() {
            site.known.lock().unwrap().retain(|other| other.id != known.id);
        }
    }
}

/// The backup client of a service: writes to the disk of its VM, backs it up, and compares the restored disk.
fn backed_up<'a>(site: &'a Site, service: usize, vm: &'a Vm) -> impl Fn(&mut Worker) + Send + use<'a> {
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::of(&site.services[service], &site.certificates, target.path());
    move |worker| {
        let disk = File::options().write(true).open(&vm.disk).unwrap();
        change(&disk, &mut worker.random).unwrap();
        let (moment, leap) = (site.failing_hooks.now(), site.leap.now());
        let directory = backup.directory.to_str().unwrap();
        let (status, stdout, stderr) = backup.try_run(&["backup", backup.url(), &vm.id, "--to", directory, "-q"]);
        if status != Some(0) {
            site.tally.count("backup: an error");
            // A token of a leaped clock is not yet valid when the clock is back.
            if !site.failing_hooks.acted_since(moment) && !site.leap.acted_since(leap) {
                site.tally.fail(format!("backup: {status:?} {stdout}{stderr}"));
            }
            return;
        }
        let out = target.path().join("out");
        let (status, stdout, stderr) =
            backup.try_run(&["restore", directory, &vm.id, "--out", out.to_str().unwrap(), "-q"]);
        let restored = fs::read(out.join(&vm.disk_name)).unwrap_or_default();
        if status != Some(0) || restored != fs::read(&vm.disk).unwrap() {
            site.tally.fail(format!("a wrong restore of {}: {status:?} {stdout}{stderr}", vm.id));
        }
        let _ = fs::remove_dir_all(out);
        site.tally.count("backup: restored");
        site.tally.compared(restored.len());
    }
}

/// Writes data, and punches holes.
fn change(disk: &File, random: &mut Random) -> std::io::Result<()> {
    for _ in 0..random.below(6) {
        let (at, length) = (random.below(DISK_SIZE - 70_000), 1 + random.below(70_000));
        if random.below(3) == 0 {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(disk, flags, at as i64, length as i64)?;
        } else {
            disk.write_all_at(&random.bytes(length), at)?;
        }
    }
    Ok(())
}

impl Worker<'_> {
    /// Any snapshot that is not deleted, and when the request begins.
    fn pick(&mut self) -> Option<(Arc<Known>, Moments)> {
        let known = self.site.known.lock().unwrap();
        let usable: Vec<_> = known
            .iter()
            .filter(|known| known.service == self.service && !known.deleted.load(Ordering::SeqCst))
            .collect();
        if usable.is_empty() {
            drop(known);
            for_a_while(Duration::from_millis(20));
            return None;
        }
        let picked = usable[self.random.below(usable.len() as u64) as usize].clone();
        let moments = self.site.moments(picked.place);
        Some((picked, moments))
    }

    /// The route of a snapshot's document, or of its disk.
    fn route(&self, known: &Known) -> String {
        format!("/api/v1/vms/{}/snapshots/{}", self.site.vm(known).id, known.id)
    }

    fn disk_route(&self, known: &Known) -> String {
        format!("{}/disks/{}", self.route(known), self.site.vm(known).disk_name)
    }

    /// Sends a request; returns a successful answer. Errors have to be explained.
    fn ask(
        &self,
        what: &str,
        moments: &Moments,
        place: usize,
        known: Option<&Known>,
        request: RequestBuilder,
    ) -> Option<Answer> {
        let answer = self.client.send_twice(request);
        self.site.tally.judge(what, answer, |code| self.is_explained(code, place, known, moments))
    }

    fn is_explained(&self, code: &str, place: usize, known: Option<&Known>, moments: &Moments) -> bool {
        let is_deleted = known.is_some_and(|known| known.deleted.load(Ordering::SeqCst));
        self.site.explains(code, place, moments) || is_deleted && matches!(code, "not_found" | "broken")
    }

    /// Checks served bytes against the content of the snapshot.
    fn check(&self, known: &Known, start: u64, bytes: &[u8]) {
        let expected = &known.content[start as usize..][..bytes.len()];
        self.site.tally.compared(bytes.len());
        if bytes != expected {
            let at = bytes.iter().zip(expected).position(|(a, b)| a != b);
            self.site.tally.fail(format!("wrong bytes in snapshot {} at {start} + {at:?}", known.id));
        }
    }
}

fn read_range(worker: &mut Worker) {
    let Some((known, moments)) = worker.pick() else { return };
    let start = worker.random.below(DISK_SIZE);
    let end = (start + worker.random.below(300_000)).min(DISK_SIZE - 1);
    let request = worker.client.request(Method::GET, &worker.disk_route(&known));
    let request = request.header("Range", format!("bytes={start}-{end}"));
    if let Some(answer) = worker.ask("range", &moments, known.place, Some(&known), request) {
        assert_eq!((answer.status, answer.body.len() as u64), (206, end - start + 1));
        worker.check(&known, start, &answer.body);
    }
}

fn read_whole(worker: &mut Worker) {
    let Some((known, moments)) = worker.pick() else { return };
    let request = worker.client.request(Method::GET, &worker.disk_route(&known));
    if let Some(answer) = worker.ask("whole disk", &moments, known.place, Some(&known), request) {
        assert_eq!(answer.body.len() as u64, DISK_SIZE);
        worker.check(&known, 0, &answer.body);
    }
}

/// Asks what changed since an older snapshot, or in all, and applies it to the older content.
fn compare(worker: &mut Worker) {
    let Some((known, moments)) = worker.pick() else { return };
    let all = worker.site.snapshots_of(worker.service, known.place, known.vm);
    // It may be deleted meanwhile.
    let Some(place) = all.iter().position(|other| other.id == known.id) else { return };
    let older = all[..place].last();
    let query = older.map_or(String::new(), |base| format!("?compareTo={}", base.id));
    let request = worker.client.request(Method::GET, &(worker.route(&known) + &query));
    let answer = worker.client.send_twice(request);
    let is_explained = |code: &str| {
        worker.is_explained(code, known.place, Some(&known), &moments)
            // The base may be deleted meanwhile.
            || older.is_some_and(|base| worker.is_explained(code, known.place, Some(base), &moments))
            || older.is_some_and(|base| base.deleted.load(Ordering::SeqCst)) && code == "base_lost"
    };
    let Some(answer) = worker.site.tally.judge("compare", answer, is_explained) else { return };
    let disk = &answer.json()["disks"][0];
    if is_incomplete(disk, worker, &known, older, &moments) {
        return;
    }
    let mut bytes = older.map_or_else(|| vec![0; DISK_SIZE as usize], |base| base.content.clone());
    for chunk in chunks(disk) {
        let range = chunk.start as usize..(chunk.start + chunk.length) as usize;
        if chunk.zero {
            bytes[range].fill(0);
        } else {
            bytes[range.clone()].copy_from_slice(&known.content[range]);
        }
    }
    worker.check(&known, 0, &bytes);
}

/// Whether the map of a disk could not be read, which the document says with a status. It has to be explained.
fn is_incomplete(disk: &Value, worker: &Worker, known: &Known, base: Option<&Arc<Known>>, moments: &Moments) -> bool {
    if disk["status"] == "ok" {
        return false;
    }
    let site = worker.site;
    let is_deleted = |known: &Known| known.deleted.load(Ordering::SeqCst);
    let explained = site.places[known.place].trouble.acted_since(moments.place)
        || is_deleted(known)
        || base.is_some_and(|base| is_deleted(base));
    if !explained {
        site.tally.fail(format!("compare: {disk}"));
    }
    site.tally.count("compare: a disk with an error");
    true
}

fn checksum(worker: &mut Worker) {
    let Some((known, moments)) = worker.pick() else { return };
    let request =
        worker.client.request(Method::GET, &format!("{}/checksum?algorithm=sha256", worker.disk_route(&known)));
    if let Some(answer) = worker.ask("checksum", &moments, known.place, Some(&known), request) {
        let expected: String =
            digest(&SHA256, &known.content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if answer.json()["checksum"] != *expected {
            worker.site.tally.fail(format!("a wrong checksum of snapshot {}: {}", known.id, answer.json()));
        }
        worker.site.tally.compared(known.content.len());
    }
}

/// Reads a part of a disk and disconnects.
fn disconnect(worker: &mut Worker) {
    let Some((known, _)) = worker.pick() else { return };
    let mut stream = connect(&worker.site.services[worker.service], &worker.site.certificates);
    let (route, token) = (worker.disk_route(&known), &worker.client.token);
    let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer";
    let _ = write!(stream, "GET {route} {head} {token}\r\n\r\n");
    let mut part = vec![0; 1 + worker.random.below(100_000) as usize];
    let _ = stream.read_exact(&mut part);
    worker.site.tally.count("disconnected");
}

fn list(worker: &mut Worker) {
    for path in ["/healthz", "/readyz", "/api/v1/status", "/api/v1/vms", "/api/v1/repositories", "/metrics"] {
        // A repository without an answer makes the service not ready. Only the first service has metrics.
        let answer = worker.client.send_twice(worker.client.request(Method::GET, path));
        worker.site.tally.judge("list", answer, |code| {
            path == "/readyz" && code == "status 503"
                || path == "/metrics" && worker.service == 1 && code == "not_found"
        });
    }
}

fn log_in(worker: &mut Worker) {
    let moment = worker.site.leap.now();
    let body = serde_json::json!({"username": USER, "password": PASSWORD}).to_string();
    let request = worker.client.request(Method::POST, "/api/v1/auth/login").body(body);
    let answer = worker.client.send_twice(request);
    let Some(answer) = worker.site.tally.judge("log in", answer, |code| code == "throttled") else { return };
    let token = text(&answer.json()["token"]);
    let previous = std::mem::replace(&mut worker.client.token, token);
    let answer = worker.client.send_twice(worker.client.request(Method::GET, "/api/v1/vms"));
    // A token of a leaped clock is not yet valid when the clock is back.
    let leaped = worker.site.leap.acted_since(moment);
    worker.site.tally.judge("first request", answer, |code| leaped && code == "unauthorized");
    worker.client.token = previous;
}

/// The same bytes with curl.
fn run_curl(worker: &mut Worker) {
    let Some((known, moments)) = worker.pick() else { return };
    let site = worker.site;
    let start = worker.random.below(DISK_SIZE - 70_000);
    let mut curl = Command::new("curl");
    let url = format!("https://127.0.0.1:{}{}", site.services[worker.service].port, worker.disk_route(&known));
    curl.args(["--silent", "--fail", "--max-time", "120", "--cacert"]).arg(site.certificates.ca());
    curl.args(["--range", &format!("{start}-{}", start + 69_999), "--oauth2-bearer", &worker.client.token, &url]);
    let found = curl.output().unwrap();
    if found.status.success() {
        site.tally.count("curl: 206");
        return worker.check(&known, start, &found.stdout);
    }
    // curl does not tell the code.
    site.tally.count("curl: an error");
    let is_deleted = known.deleted.load(Ordering::SeqCst);
    // Exit status 22: the status is 400 or more; 429 may always be the answer.
    if found.status.code() != Some(22) && !is_deleted && !site.places[known.place].trouble.acted_since(moments.place) {
        site.tally.fail(format!("curl: {found:?}"));
    }
}

/// Bytes that are no request, and requests without rights.
fn send_nonsense(worker: &mut Worker) {
    let mut stream = connect(&worker.site.services[worker.service], &worker.site.certificates);
    let nonsense = worker.random.bytes(2000);
    let _ = stream.write_all(&nonsense).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let previous = std::mem::take(&mut worker.client.token);
    let answer = worker.client.send_twice(worker.client.request(Method::GET, "/api/v1/vms"));
    worker.client.token = previous;
    if let Some(answer) = worker.site.tally.judge("without a token", answer, |code| code == "unauthorized") {
        worker.site.tally.fail(format!("without a token: {}", answer.status));
    }
    let socket = worker.site.services[worker.service].socket();
    let url = "http://localhost/api/v1/status";
    output(Command::new("curl").args(["--silent", "--fail", "--unix-socket"]).arg(socket).arg(url));
    worker.site.tally.count("operator: 200");
}
