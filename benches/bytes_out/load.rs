//! The loads for each peer, and their measurements.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::client::{Connection, config};
use crate::harness::Random;
use crate::harness::output;
use crate::peer::Peer;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// The files to serve.
#[derive(Clone)]
pub struct Input {
    /// The size of `full.img` and `hole.img`.
    pub size: u64,
    pub snapshot: String,
    /// The folder of the snapshot.
    pub folder: PathBuf,
    /// The image that the repository is mounted from.
    pub image: PathBuf,
}

impl Input {
    fn warm(&self, file: &str) {
        std::io::copy(&mut File::open(self.folder.join(file)).unwrap(), &mut std::io::sink()).unwrap();
    }

    /// Drops a file from the page cache, both as a file and as a part of the image.
    fn cool(&self, file: &str) {
        for path in [&self.folder.join(file), &self.image] {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
    }

    fn cached(&self, file: &str) -> f64 {
        let path: &Path = &self.folder.join(file);
        output(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path))
            .trim()
            .parse()
            .unwrap()
    }
}

type Measured = Vec<(&'static str, f64)>;
type Load = fn(&Peer, &Input) -> Measured;

const THROUGHPUT: &str = "MiB/s";
const CPU: &str = "CPU s/GiB";
const MEMORY: &str = "memory over idle, MiB";

/// Whether a peer supports the load.
pub fn fits(name: &str, peer: &Peer) -> bool {
    !peer.is_nbd || name.starts_with("one stream")
}

pub const LOADS: &[(&str, Load)] = &[
    ("one stream", |peer, input| {
        input.warm("full.img");
        streams(peer, "full.img", input.size, 1)
    }),
    ("a hole: nothing read", |peer, input| streams(peer, "hole.img", input.size, 1)),
    ("8 parallel ranges", |peer, input| {
        input.warm("full.img");
        streams(peer, "full.img", input.size, 8)
    }),
    ("one stream, cold", |peer, input| {
        input.cool("full.img");
        let mut measured = streams(peer, "full.img", input.size, 1);
        measured.push(("left in the page cache, MiB", input.cached("full.img") / MIB));
        measured
    }),
    ("ranges of 4 KiB, one connection", |peer, input| {
        input.warm("full.img");
        ranges(peer, 4 << 10, input.size, 20_000)
    }),
    ("ranges of 1 MiB, one connection", |peer, input| {
        input.warm("full.img");
        ranges(peer, 1 << 20, input.size, 2_000)
    }),
    ("64 ranges of 4 KiB in each request", |peer, input| {
        const COUNT: u64 = 500;
        input.warm("full.img");
        let mut random = Random(64);
        let config = config(peer);
        let mut connection = Connection::open(peer, &config);
        let (cpu, started) = (peer.cpu(), Instant::now());
        for _ in 0..COUNT {
            // In order, as the chunks of a comparison are.
            let mut starts: Vec<u64> = (0..64).map(|_| random.below(input.size >> 12) << 12).collect();
            starts.sort_unstable();
            starts.dedup();
            let ranges: Vec<String> = starts.iter().map(|start| format!("{start}-{}", start + 4095)).collect();
            let length = connection.request("full.img", &ranges.join(","));
            assert!(length > starts.len() as u64 * 4096, "{}: {length} bytes received", peer.name);
        }
        let ranges = (COUNT * 64) as f64;
        vec![
            ("ranges/s", ranges / started.elapsed().as_secs_f64()),
            ("CPU µs a range", (peer.cpu() - cpu) / ranges * 1e6),
        ]
    }),
    ("1 GiB of data in a disk of 1 TiB", |peer, input| {
        input.warm_sparse();
        let config = config(peer);
        let mut connection = Connection::open(peer, &config);
        let (cpu, started) = (peer.cpu(), Instant::now());
        for gib in 0..1024_u64 {
            connection.fetch("sparse.img", gib << 30..(gib << 30) + (1 << 20));
        }
        let seconds = started.elapsed().as_secs_f64();
        vec![(THROUGHPUT, GIB / MIB / seconds), (CPU, peer.cpu() - cpu)]
    }),
    ("a connection for each 4 KiB, resumed", |peer, _| {
        const COUNT: u32 = 2_000;
        let config = config(peer);
        Connection::open(peer, &config).fetch("full.img", 0..4096);
        let (cpu, started) = (peer.cpu(), Instant::now());
        for _ in 0..COUNT {
            let mut connection = Connection::open(peer, &config);
            assert!(connection.is_resumed(), "{}", peer.name);
            connection.fetch("full.img", 4096..8192);
        }
        let rate = f64::from(COUNT) / started.elapsed().as_secs_f64();
        vec![("connections/s", rate), ("CPU µs each", (peer.cpu() - cpu) / f64::from(COUNT) * 1e6)]
    }),
    ("200 idle connections", |peer, _| {
        let before = peer.memory("VmRSS");
        let config = config(peer);
        let open = || {
            let mut connection = Connection::open(peer, &config);
            connection.fetch("full.img", 0..4096);
            connection
        };
        let connections: Vec<_> = (0..200).map(|_| open()).collect();
        let grown = peer.memory("VmRSS").saturating_sub(before);
        drop(connections);
        vec![("KiB each", grown as f64 / 200.0)]
    }),
];

impl Input {
    /// Reads only the data of `sparse.img` into the page cache.
    fn warm_sparse(&self) {
        use std::os::unix::fs::FileExt;
        let file = File::open(self.folder.join("sparse.img")).unwrap();
        let mut buffer = vec![0; 1 << 20];
        (0..1024).for_each(|gib| file.read_exact_at(&mut buffer, gib << 30).unwrap());
    }
}

/// Fetches `file` with `count` clients (curl or nbdcopy), one part each.
fn streams(peer: &Peer, file: &str, size: u64, count: u64) -> Measured {
    let idle = peer.memory("VmRSS");
    peer.reset_peak();
    let (cpu, started) = (peer.cpu(), Instant::now());
    let part = size / count;
    let clients: Vec<Child> = (0..count).map(|n| client(peer, file, n * part, (n + 1) * part)).collect();
    for mut client in clients {
        let status = client.wait().unwrap();
        assert!(status.success(), "{}: its client: {status}", peer.name);
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = peer.cpu() - cpu;
    let memory = peer.memory("VmHWM").saturating_sub(idle);
    vec![(THROUGHPUT, size as f64 / MIB / seconds), (CPU, cpu / (size as f64 / GIB)), (MEMORY, memory as f64 / 1024.0)]
}

fn client(peer: &Peer, file: &str, start: u64, end: u64) -> Child {
    if peer.is_nbd {
        let uri = format!("nbds://localhost:{}/{file}?tls-certificates={}", peer.port, peer.ca);
        return Command::new("nbdcopy").args(["--connections=1", &uri, "null:"]).spawn().unwrap();
    }
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--http1.1", "--noproxy", "*", "--cacert", &peer.ca]);
    command.args(["--output", "/dev/null", "--range", &format!("{start}-{}", end - 1)]);
    if !peer.authorization.is_empty() {
        command.args(["--header", &format!("Authorization: {}", peer.authorization)]);
    }
    command.arg(peer.url(file)).stdin(Stdio::null()).spawn().unwrap()
}

/// Fetches `count` ranges of `length` bytes sequentially, at the same random offsets for all peers.
fn ranges(peer: &Peer, length: u64, size: u64, count: u32) -> Measured {
    let mut random = Random(length);
    let config = config(peer);
    let mut connection = Connection::open(peer, &config);
    let mut times = Vec::with_capacity(count as usize);
    let (cpu, started) = (peer.cpu(), Instant::now());
    for _ in 0..count {
        let start = random.below(size / length) * length;
        let asked = Instant::now();
        connection.fetch("full.img", start..start + length);
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = peer.cpu() - cpu;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    vec![
        ("requests/s", f64::from(count) / seconds),
        ("p50, µs", at(0.5)),
        ("p99, µs", at(0.99)),
        ("CPU µs each", cpu / f64::from(count) * 1e6),
    ]
}
