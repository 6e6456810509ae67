//! Clients that abuse the service take neither its memory nor the time of another client.
//!
//! While each kind of abuse lasts, another user reads ranges of 4 KiB. A second service, which is not abused, is read in
//! the same way: it shows how slow the machine is at that moment, the abusing clients included. The limits are those of
//! a quiet machine, or five times what the second service needs if that is more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{
    Answer, Client, Connection, ProcessStats, SNAPSHOTS, World, connect, connect_from, eventually, memory_kib,
    raise_descriptor_limit, release_binary, silent_from, write_at,
};
use crate::needs_root;

/// The most memory of the service, over all kinds of abuse.
const MEMORY_KIB: u64 = 256 << 10;

/// The limits of a range of 4 KiB on a quiet machine: median and worst.
const LIMITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// How much slower the abused service may be than the other one on a busy machine.
const FACTOR: u32 = 5;

/// Ranges that are read at least while an abuse lasts.
const PROBES: usize = 100;

const DISK: u64 = 64 << 20;

/// Between two ranges of a client.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends a request, and reads its whole answer.
fn ask(stream: &mut Connection, request: &[u8]) -> Answer {
    stream.write_all(request).unwrap();
    stream.flush().unwrap();
    let (mut received, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..length]);
        if !received.windows(4).any(|end| end == b"\r\n\r\n") {
            continue;
        }
        let (mut answer, body) = Answer::parse_head(&received);
        if body.len() >= answer.header("content-length").parse().unwrap() {
            answer.body = body.to_vec();
            return answer;
        }
    }
}

/// A client that reads ranges until it is dropped.
struct Probe {
    count: Arc<AtomicUsize>,
    stop: Sender<()>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Probe {
    fn start(service: &Service) -> Self {
        let mut stream = connect(&service.world.exporter, &service.world.certificates);
        let request = service.get(&service.other_token, "Range: bytes=8192-12287\r\n");
        let (stop, stopped) = mpsc::channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || {
            let mut times = Vec::new();
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                let started = Instant::now();
                let answer = ask(&mut stream, request.as_bytes());
                times.push(started.elapsed());
                assert_eq!((answer.status, answer.body.len()), (206, 4096));
                counted.fetch_add(1, Ordering::Relaxed);
            }
            times
        });
        Self { count, stop, thread }
    }

    /// The median and the worst time.
    fn stop(self) -> [Duration; 2] {
        drop(self.stop);
        let mut times = self.thread.join().unwrap();
        times.sort();
        [times[times.len() / 2], times[times.len() - 1]]
    }
}

/// A service with a snapshot of a disk, and the tokens of two users.
struct Service {
    world: World,
    disk: String,
    token: String,
    other_token: String,
}

impl Service {
    /// The release needs less memory for a connection than a build for tests.
    fn start(release: &Path) -> Self {
        let world = World::with(512, |settings| settings.binary = release.to_owned());
        let disk = &world.define_vm(&[("a.img", DISK)])[0];
        write_at(disk, 0, &vec![7; usize::try_from(DISK).unwrap()]);
        let client = world.client();
        let disk = format!("/api/v1{SNAPSHOTS}/{}/disks/a.img", client.take_snapshot_id());
        let other = Client::logged_in_as(&world.exporter, &world.certificates, "test-other");
        Self { disk, token: client.token, other_token: other.token, world }
    }

    fn get(&self, token: &str, headers: &str) -> String {
        format!("GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}\r\n", self.disk)
    }

    /// A connection from one of ten addresses.
    fn connect(&self, number: usize) -> Connection {
        connect_from(&self.world.exporter, &self.world.certificates, address(number))
    }

    fn connection_threads(&self) -> usize {
        ProcessStats::of(&self.world.exporter).threads_named("connection")
    }
}

fn address(number: usize) -> [u8; 4] {
    [127, 0, 0, 2 + u8::try_from(number % 10).unwrap()]
}

/// Sends the same bytes on all connections, one byte of each in turn. A connection that the service closes is left out.
fn send_in_turn(connections: &mut Vec<Connection>, bytes: &[u8]) {
    for byte in bytes {
        connections.retain_mut(|stream| stream.write_all(&[*byte]).and_then(|()| stream.flush()).is_ok());
    }
}

fn slow_heads(service: &Service) -> Vec<Connection> {
    let mut all: Vec<_> = (0..300).map(|number| service.connect(number)).collect();
    send_in_turn(&mut all, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: a");
    all
}

fn slow_bodies(service: &Service) -> Vec<Connection> {
    let mut all: Vec<_> = (0..300).map(|number| service.connect(number)).collect();
    all.retain_mut(|stream| {
        let head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n";
        stream.write_all(head).is_ok()
    });
    send_in_turn(&mut all, b"{\"username\": \"slow\", \"password\": ");
    all
}

fn many_connections(service: &Service) -> Vec<TcpStream> {
    (0..10_000).map(|number| silent_from(&service.world.exporter, address(number))).collect()
}

fn long_heads(service: &Service) -> Vec<Connection> {
    let head = ["GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ", &"a".repeat(1_000_000)].concat();
    let send = |number| {
        let mut stream = service.connect(number);
        // The service answers before it has read everything.
        let _ = stream.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&answer));
        stream
    };
    (0..50).map(send).collect()
}

fn records_of_one_byte(service: &Service) -> Vec<Connection> {
    let request = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(1000));
    let mut all: Vec<_> = (0..30).map(|number| service.connect(number)).collect();
    send_in_turn(&mut all, request.as_bytes());
    for stream in &mut all {
        assert_eq!(ask(stream, b"").status, 200);
    }
    all
}

fn pipelined_requests(service: &Service) -> Vec<Connection> {
    let requests = service.get(&service.token, "Range: bytes=0-1048575\r\n").repeat(300);
    let send = |number| {
        let mut stream = service.connect(number);
        stream.write_all(requests.as_bytes()).unwrap();
        stream
    };
    (0..20).map(send).collect()
}

fn unread_answers(service: &Service) -> Vec<Connection> {
    let send = |number| {
        let mut stream = service.connect(number);
        stream.write_all(service.get(&service.token, "").as_bytes()).unwrap();
        stream
    };
    (0..500).map(send).collect()
}

fn deep_json(service: &Service) -> Vec<Connection> {
    let send = |number: usize| {
        let mut stream = service.connect(number);
        for body in ["[".repeat(65_000), "{\"a\":".repeat(13_000), format!("{{\"labels\":{}", "[".repeat(60_000))] {
            let (path, token) = (format!("/api/v1{SNAPSHOTS}"), &service.token);
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n");
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            assert_eq!(ask(&mut stream, request.as_bytes()).error(400), "bad_request");
        }
        stream
    };
    (0..50).map(send).collect()
}

fn overlapping_ranges(service: &Service) -> Vec<Connection> {
    let range = format!("0-{},", DISK / 64 - 1).repeat(64);
    let request = service.get(&service.token, &format!("Range: bytes={range}\r\n"));
    let read = |number| {
        let mut stream = service.connect(number);
        stream.write_all(request.as_bytes()).unwrap();
        let (mut received, mut buffer) = (0, vec![0; 256 << 10]);
        while received < DISK {
            let length = stream.read(&mut buffer).unwrap();
            assert!(received > 0 || buffer.starts_with(b"HTTP/1.1 206 "));
            assert!(length > 0, "closed after {received} bytes");
            received += length as u64;
        }
        stream
    };
    std::thread::scope(|scope| {
        let read = &read;
        let all: Vec<_> = (0..8).map(|number| scope.spawn(move || read(number))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Abuses a service, and checks that another user is served while the connections of the abuse stay open.
fn check<T>(abused: &Service, quiet: &Service, what: &str, abuse: fn(&Service) -> Vec<T>) {
    let probes = [abused, quiet].map(Probe::start);
    let before = probes[0].count.load(Ordering::Relaxed);
    let open = abuse(abused);
    eventually("the other user has been served while the connections are open", || {
        assert!(probes.iter().all(|probe| !probe.thread.is_finished()), "{what}: another user is not served");
        probes[0].count.load(Ordering::Relaxed) >= before + PROBES
    });
    let [times, usual] = probes.map(Probe::stop);
    let memory = memory_kib(abused.world.exporter.pid(), "VmHWM");
    let threads = abused.connection_threads();
    let figures = format!(
        "{what}: 4 KiB in {:.1?} (median), {:.1?} (worst); from the other service in {:.1?}, {:.1?}; {threads} \
         connections, at most {} MiB of memory\n",
        times[0],
        times[1],
        usual[0],
        usual[1],
        memory >> 10
    );
    // Not with `eprintln!`: the test runner hides that output if the test passes.
    let _ = std::io::stderr().write_all(format!("abuse: {figures}").as_bytes());
    for ((time, usual), limit) in times.into_iter().zip(usual).zip(LIMITS) {
        assert!(time <= limit.max(usual * FACTOR), "{figures}");
    }
    assert!(memory < MEMORY_KIB, "{figures}");
    drop(open);
    eventually("the connections are closed", || abused.connection_threads() <= 4);
}

#[test]
fn abuse_takes_neither_memory_nor_the_time_of_others() {
    needs_root!();
    raise_descriptor_limit();
    let Some(release) = release_binary() else { return };
    let [abused, quiet] = [(); 2].map(|()| Service::start(&release));
    check(&abused, &quiet, "nothing", |_| Vec::<()>::new());
    check(&abused, &quiet, "300 slow heads", slow_heads);
    check(&abused, &quiet, "300 slow bodies", slow_bodies);
    check(&abused, &quiet, "10,000 silent connections from ten addresses", many_connections);
    check(&abused, &quiet, "heads of 1,000,000 bytes", long_heads);
    check(&abused, &quiet, "TLS records of one byte", records_of_one_byte);
    check(&abused, &quiet, "300 pipelined requests on each of 20 connections", pipelined_requests);
    check(&abused, &quiet, "500 downloads that are not read", unread_answers);
    check(&abused, &quiet, "deep JSON", deep_json);
    check(&abused, &quiet, "64 overlapping ranges on each of 8 connections", overlapping_ranges);
    let log = abused.world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}
