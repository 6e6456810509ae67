//! What happens in the pool, in this order: the last ones end hosts.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use reqwest::Method;

use super::hosts::{DISK, Host, Hosts};
use crate::harness::{Answer, Client, MB, Random, SNAPSHOTS, VM, chunks, eventually, for_a_while, text};

/// The marker in the folder of an unfinished snapshot.
const MAKING: &str = ".making";

type Scenario = (&'static str, fn(&mut Hosts));

pub const ALL: &[Scenario] = &[
    ("a snapshot is the same on both hosts, and each deletes it", same_on_both),
    ("a request that is repeated at the other host makes no second snapshot", repeated_elsewhere),
    ("creations at once hold a quiesced guest, or do not say so", creations_at_once),
    ("an exporter is killed before the clone", |hosts| killed_exporter(hosts, Stage::Pre)),
    ("an exporter is killed between clone and manifest", |hosts| killed_exporter(hosts, Stage::Post)),
    ("a host dies between clone and manifest, and comes back", killed_host),
    ("the cluster's network is cut", cut_network),
    ("the host that has reset itself comes back with locks of its own", local_locks),
];

/// The hooks that an operation stops in.
#[derive(Clone, Copy)]
enum Stage {
    /// Before the clone.
    Pre,
    /// After the clone, and before the manifest.
    Post,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }

    /// The file that makes the hook hang.
    fn hang(self, host: &Host) -> PathBuf {
        host.node.state().join(format!("hang-{}", self.name()))
    }
}

/// Freezes and thaws the guest: while it is frozen, its disk begins with `CLEAN`. `calls` in the repository has all calls
/// of all hosts. A call makes the file `in-<stage>` of its host, and waits while there is a file `hang-<stage>`.
const GUEST: &str = r#"
[ "$1" = snapshot-create ] || exit 0
guest() { printf '%-512s' "$1" | dd of="$REPOSITORY/VirtualDisks/a.img" bs=512 conv=notrunc,fsync status=none; }
echo "$EXPORTER_SNAPSHOT $2 $(cat /proc/sys/kernel/hostname)" >>"$REPOSITORY/calls"
[ "$2" = post ] || { echo quiesced; guest CLEAN; }
touch "$STATE/in-$2"
while [ -e "$STATE/hang-$2" ]; do sleep 0.1; done
[ "$2" = pre ] || guest DIRTY
"#;

fn same_on_both(hosts: &mut Hosts) {
    let (a, b) = (&hosts.a, &hosts.b);
    let first = a.client.take_snapshot_id();
    // The guest runs on the other host.
    let written = Random(7).bytes(200_000);
    b.write_disk(5 * MB + 4096, &written);
    let second = a.client.take_snapshot_id();
    let [before, after] = [&first, &second].map(|id| a.client.disk(id, DISK));
    assert!(after[5 * MB as usize + 4096..].starts_with(&written), "the other host's write is missing");
    let change = a.client.compare(&second, &first)["disks"][0].clone();
    assert_eq!(change["mode"], "incremental", "{change}");
    assert!(a.client.patched(&change, &before) == after, "{change}");
    let listed: u64 = chunks(&change).iter().map(|chunk| chunk.length).sum();
    assert!((200_000..2 * MB).contains(&listed), "{change}");
    assert_eq!(b.client.compare(&second, &first)["disks"][0], change);
    for (id, content) in [(&first, &before), (&second, &after)] {
        let path = a.snapshot_folder(id).join(DISK);
        assert_eq!(b.checksum(&path), blake3::hash(content).to_hex().as_str());
        assert_eq!(a.extent_map(&path), b.extent_map(&path));
        let document = format!("{SNAPSHOTS}/{id}");
        assert_eq!(a.client.get(&document).ok(), b.client.get(&document).ok());
    }
    // A download that began at one host continues at the other.
    let (disk, middle) = (format!("/api/v1{SNAPSHOTS}/{second}/disks/{DISK}"), after.len() / 2);
    let part = |host: &Host, range: String, tag: &str| {
        let request = host.client.request(Method::GET, &disk).header("Range", range).header("If-Range", tag);
        let answer = host.client.send(request);
        assert_eq!(answer.status, 206);
        answer
    };
    let tag = a.client.send(a.client.request(Method::HEAD, &disk)).header("etag").to_owned();
    let begin = part(a, format!("bytes=0-{}", middle - 1), &tag);
    let rest = part(b, format!("bytes={middle}-"), begin.header("etag"));
    assert!([begin.body, rest.body].concat() == after, "the parts of two hosts make another disk");

    assert_eq!(b.client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    for host in [a, b] {
        assert_eq!(host.client.snapshot_ids(), [second.as_str()]);
    }
    assert!(!a.snapshot_folders().contains(&first), "the folder is left");
}

fn repeated_elsewhere(hosts: &mut Hosts) {
    let (a, b) = (&hosts.a, &hosts.b);
    let create = |host: &Host| {
        let request = host.client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
        text(&host.client.send(request.header("Idempotency-Key", "nightly-1")).ok()["id"])
    };
    // At once, too.
    let made =
        thread::scope(|scope| [a, b].map(|host| scope.spawn(move || create(host))).map(|made| made.join().unwrap()));
    assert_eq!(made[0], made[1]);
    assert_eq!(create(a), made[0]);
    assert_eq!(b.client.snapshot_ids().last(), Some(&made[0]));
}

fn creations_at_once(hosts: &mut Hosts) {
    const EACH: usize = 3;
    let (a, b) = (&hosts.a, &hosts.b);
    for host in [a, b] {
        host.put_hook("guest", GUEST);
    }
    thread::scope(|scope| {
        for host in [a, b] {
            scope.spawn(move || {
                for _ in 0..EACH {
                    let made = host.client.take_snapshot();
                    assert_eq!(made["consistency"], "quiesced", "{made}");
                    let id = text(&made["id"]);
                    let state = host.client.disk_range(&id, DISK, 0, 5);
                    assert_eq!(String::from_utf8_lossy(&state), "CLEAN", "{made}");
                    assert_eq!(host.client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
                }
            });
        }
    });
    let calls = calls(a);
    assert_eq!(calls.len(), 4 * EACH, "{calls:#?}");
    for pair in calls.chunks(2) {
        assert_eq!(pair[0].replace(" pre ", " post "), pair[1], "{calls:#?}");
    }
    let hosts: Vec<bool> = calls.iter().map(|call| call.ends_with("node1")).collect();
    assert_eq!(hosts.iter().filter(|first| **first).count(), 2 * EACH, "{calls:#?}");
}

fn killed_exporter(hosts: &mut Hosts, stage: Stage) {
    // Each host once.
    let (dying, other) = match stage {
        Stage::Pre => (&hosts.b, &hosts.a),
        Stage::Post => (&hosts.a, &hosts.b),
    };
    let interrupted = Interrupted::start(dying, hosts.client_of(dying), stage);
    dying.kill_exporter();
    interrupted.has_failed();
    fs::remove_file(stage.hang(dying)).unwrap();
    // The lock is free as soon as its holder has ended.
    let made = other.client.take_snapshot();
    assert_eq!(made["consistency"], "quiesced", "{made}");
    assert_eq!(other.client.disk_range(&text(&made["id"]), DISK, 0, 5), b"CLEAN");
    check_not_adopted(other, &interrupted.folder);
    dying.start_exporter();
    check_recovered(hosts, &interrupted.folder);
}

fn killed_host(hosts: &mut Hosts) {
    let client = hosts.client_of(&hosts.a);
    let Hosts { a, b, .. } = hosts;
    let id = b.client.take_snapshot_id();
    let content = b.client.disk(&id, DISK);
    let mut download = Download::start(&b.client, &id);
    let interrupted = Interrupted::start(a, client, Stage::Post);
    a.node.switch_off();
    fs::remove_file(Stage::Post.hang(a)).unwrap();
    // It boots while the others find out, and mounts the repository afterwards.
    a.node.switch_on();
    download.finish(&content);
    check_answers(b, || true);
    interrupted.has_failed();
    check_not_adopted(b, &interrupted.folder);
    a.node.wait_until_up();
    a.mount("");
    a.start_exporter();
    check_recovered(hosts, &interrupted.folder);
}

fn cut_network(hosts: &mut Hosts) {
    let Hosts { a, b, .. } = hosts;
    let id = a.client.take_snapshot_id();
    let content = a.client.disk(&id, DISK);
    let mut download = Download::start(&a.client, &id);
    b.node.connect(false);
    // Of two nodes, the one with the lower number keeps the volume, and the other one resets itself.
    let mut was_reset = false;
    check_answers(a, || {
        download.read_some();
        if !was_reset && !b.node.is_on() {
            was_reset = true;
            b.node.switch_off();
            b.node.switch_on();
        }
        was_reset
    });
    download.finish(&content);
    let made = a.client.take_snapshot();
    assert_eq!(String::from_utf8_lossy(&a.client.disk_range(&text(&made["id"]), DISK, 0, 5)), "CLEAN");
}

fn local_locks(hosts: &mut Hosts) {
    let Hosts { a, b, .. } = hosts;
    b.node.wait_until_up();
    b.mount("localflocks");
    fs::remove_file(b.node.state().join("log")).unwrap();
    b.start_exporter();
    let says = |text: &str| assert!(text.contains("mounted with localflocks") && text.contains("without"), "{text}");
    says(&fs::read_to_string(b.node.state().join("log")).unwrap());
    let (status, printed) = b.command("check-config");
    assert_ne!(status, 0, "{printed}");
    says(&printed);
    let (listed, status) = (b.client.get("/repositories").ok(), b.client.get("/status").ok());
    for repository in [&listed[0], &status["repositories"][0]] {
        assert_eq!(repository["status"], "error", "{repository}");
        says(&text(&repository["reason"]));
    }
    let folders = b.snapshot_folders();
    let refused = b.client.post(SNAPSHOTS);
    assert_eq!(refused.error(400), "not_snapshottable");
    says(&text(&refused.json()["details"]));
    let own = b.client.snapshot_ids().pop().unwrap();
    let refused = b.client.delete(&format!("{SNAPSHOTS}/{own}"));
    assert_eq!(refused.error(503), "repository_unavailable");
    says(&text(&refused.json()["details"]));
    assert_eq!(b.snapshot_folders(), folders);
    // Downloads need no lock, and the other host is not concerned.
    assert_eq!(b.client.disk_range(&own, DISK, 0, 5), b"CLEAN");
    a.client.take_snapshot();
}

/// A creation that hangs in its hooks until the host or its exporter ends.
struct Interrupted {
    request: JoinHandle<reqwest::Result<Answer>>,
    /// The name of the snapshot's folder.
    folder: String,
}

impl Interrupted {
    fn start(host: &Host, client: Client, stage: Stage) -> Self {
        let state = host.node.state();
        let _ = fs::remove_file(state.join(format!("in-{}", stage.name())));
        fs::write(stage.hang(host), "").unwrap();
        let request =
            thread::spawn(move || client.try_send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))));
        eventually("the hook hangs", || state.join(format!("in-{}", stage.name())).exists());
        let folders = host.snapshot_folders();
        let files = |name: &String| host.node.run(&format!("ls -A {:?}", host.snapshot_folder(name)));
        let mut unfinished = folders.into_iter().filter(|name| files(name).contains(MAKING));
        let folder = unfinished.next().unwrap();
        assert_eq!(unfinished.next(), None);
        let made = match stage {
            Stage::Pre => MAKING.to_owned(),
            Stage::Post => format!("{MAKING}\n{DISK}"),
        };
        assert_eq!(files(&folder), made);
        Self { request, folder }
    }

    fn has_failed(&self) {
        eventually("the request ends", || self.request.is_finished());
    }
}

/// Checks that a host does not take an unfinished snapshot for a finished one.
fn check_not_adopted(host: &Host, half: &str) {
    assert!(!host.client.snapshot_ids().contains(&half.to_owned()));
    let (status, printed) = host.command("adopt --manifests --dry-run");
    assert_eq!(status, 0, "{printed}");
    let adopted = printed.lines().find(|line| line.contains(half) && !line.starts_with("skipped"));
    assert_eq!(adopted, None, "{printed}");
}

/// Checks that nothing is left of an unfinished snapshot, and that both hosts make snapshots.
fn check_recovered(hosts: &Hosts, half: &str) {
    eventually("the unfinished snapshot is removed", || !hosts.a.snapshot_folders().contains(&half.to_owned()));
    for host in [&hosts.a, &hosts.b] {
        let made = host.client.take_snapshot();
        assert_eq!(made["consistency"], "quiesced", "{made}");
        assert!(!host.client.snapshot_ids().contains(&half.to_owned()));
    }
    // A request waits half a second for the file system, which a slow guest needs longer for.
    eventually("both hosts list the same", || hosts.a.client.snapshot_ids() == hosts.b.client.snapshot_ids());
}

/// Sends requests until `is_over`, and then until the host makes a snapshot. Checks that each answer is a success, or says
/// that the repository is unavailable or the VM locked. The host may make snapshots before.
fn check_answers(host: &Host, mut is_over: impl FnMut() -> bool) {
    let (start, mut refused) = (Instant::now(), 0);
    let mut send = |method: Method, path: &str| {
        let answer = host.client.send(host.client.request(method, &format!("/api/v1{path}")));
        if answer.status != 200 {
            let code = answer.error(503);
            assert!(code == "repository_unavailable" || code == "vm_busy", "{answer:?}");
            assert!(!answer.header("retry-after").is_empty());
            refused += 1;
        }
        answer
    };
    let vm = format!("/vms/{VM}");
    eventually("the host makes snapshots again", || {
        // The guests share two processors with all of this.
        for_a_while(Duration::from_millis(300));
        for path in [SNAPSHOTS, "/repositories", &vm] {
            send(Method::GET, path);
        }
        let made = send(Method::POST, SNAPSHOTS);
        is_over() && made.status == 200
    });
    println!(
        "          {:.1} s until it makes snapshots again, {refused} requests refused",
        start.elapsed().as_secs_f32()
    );
}

/// The calls of the hook in the order of all hosts.
fn calls(host: &Host) -> Vec<String> {
    host.node.run(&format!("cat {:?}/calls", host.repository())).lines().map(str::to_owned).collect()
}

/// A download that has begun.
struct Download {
    response: reqwest::blocking::Response,
    begin: Vec<u8>,
}

impl Download {
    fn start(client: &Client, id: &str) -> Self {
        let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/{DISK}");
        let mut response = client.request(Method::GET, &path).send().unwrap();
        assert_eq!(response.status(), 200);
        let mut begin = vec![0; MB as usize];
        response.read_exact(&mut begin).unwrap();
        Self { response, begin }
    }

    fn read_some(&mut self) {
        let mut next = (&mut self.response).take(MB / 4);
        next.read_to_end(&mut self.begin).unwrap();
    }

    fn finish(&mut self, content: &[u8]) {
        self.response.read_to_end(&mut self.begin).unwrap();
        assert!(self.begin == content, "the download has other bytes");
    }
}
