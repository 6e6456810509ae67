//! Sends arbitrary bytes to the service as an operator's connection: request lines, headers and bodies.
//!
//! The service has one VM with one snapshot, so that all routes find something. A panic ends the fuzzer, also one in a
//! handler, which the service would answer.

#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;

use coriolis_ovm_exporter::fuzzing::{
    App, Confinement, Described, DiskSource, FileIdentity, Launcher, Metrics, Opened, Provenance, Snapshot,
    SnapshotDisk, SnapshotId, manifest, parse_with_faults, router, serve_operator, service_id,
};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

const VM: &str = "0004fb00000600000000000000000001";
const SIZE: usize = 100_000;

/// The service's database and repository.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/http_requests");

struct Service {
    runtime: Runtime,
    serve: Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>,
}

fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let service = start();
        let ask = |request: &str| {
            let answer =
                service.exchange(format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").as_bytes());
            String::from_utf8_lossy(&answer).into_owned()
        };
        let adopted = ask("POST /api/v1/adopt?manifests=true");
        let disk = format!("/api/v1/vms/{VM}/snapshots/00000000-0000-0000-0000-000000000007/disks/a.img");
        let answer = ask(&format!("GET {disk}"));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{adopted}\n{answer}");
        service
    })
}

fn start() -> Service {
    // A fuzzer ends without cleaning up, so the next one does it.
    let dir = Path::new(FOLDER);
    let _ = fs::remove_dir_all(dir);
    let repository = dir.join("0004fb0000030000a1b2c3d4e5f60718");
    let folder = |path: &str| {
        let path = repository.join(path);
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    let disk = folder("VirtualDisks").join("a.img");
    fs::write(&disk, vec![7; SIZE]).expect("a disk");
    let definition = format!("name = '{VM}'\ndisk = ['file:{},xvda,w']\nmemory = 512\n", disk.display());
    fs::write(folder(&format!("VirtualMachines/{VM}")).join("vm.cfg"), definition).expect("a definition");
    let config = format!(
        "db_file = {:?}\novm_endpoint = \"https://127.0.0.1:9\"\n[jwt]\nsecret = \"a secret of the fuzz target, used for nothing else\"\n\
         [repositories]\novs_agent_db = \"\"\npaths = [{repository:?}]\n[metrics]\nenabled = true\n",
        dir.join("db"),
    );
    let (config, faults) = parse_with_faults(&config);
    assert_eq!(faults, Vec::<String>::new());
    let snapshot = SnapshotId::from_u128(7);
    let clone = folder(&format!("CoriolisSnapshots/{snapshot}")).join("a.img");
    fs::copy(&disk, &clone).expect("a clone");
    let described = Described::alone(taken(snapshot, &clone));
    let text = manifest::encode(&described, &service_id(&config.db_file)).expect("it encodes");
    fs::write(clone.with_file_name(manifest::FILE_NAME), text).expect("a manifest");

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let opened = Opened::new(&config).expect("a new database");
    let router = runtime.block_on(async {
        // Confined, the fuzzer could not write its own files.
        let confined = (Confinement::off("this is a fuzz target"), Launcher::InProcess);
        let app = App::start(&config, Metrics::default(), opened, confined).await.expect("the service starts");
        router(app, config.metrics, config.api.pages)
    });
    let handle = runtime.handle().clone();
    let serve = move |request: &[u8]| {
        handle.block_on(async {
            let (client, server) = UnixStream::pair().expect("a pair of sockets");
            client.set_nonblocking(true).expect("a socket");
            server.set_nonblocking(true).expect("a socket");
            let (mut reader, mut writer) = tokio::net::UnixStream::from_std(client).expect("a socket").into_split();
            let mut answers = Vec::new();
            let send = async move {
                // The service may close the connection before.
                let _ = writer.write_all(request).await;
                let _ = writer.shutdown().await;
            };
            let _ = tokio::join!(serve_operator(server, router.clone()), send, reader.read_to_end(&mut answers));
            answers
        })
    };
    Service { runtime, serve: Box::new(serve) }
}

fn taken(id: SnapshotId, clone: &Path) -> Snapshot {
    let file = fs::metadata(clone).expect("a file");
    let repository = "0004fb0000030000a1b2c3d4e5f60718".parse().expect("an id");
    let changed_ns = i128::from(file.ctime()) * 1_000_000_000 + i128::from(file.ctime_nsec());
    Snapshot {
        id,
        vm: VM.parse().expect("an id"),
        sequence: 1,
        created_at: "2024-05-01T10:20:30Z".parse().expect("a time"),
        created_by: "root".to_owned(),
        disks: vec![SnapshotDisk {
            name: "a.img".parse().expect("a name"),
            source: DiskSource { repository, path: "VirtualDisks/a.img".to_owned() },
            identity: FileIdentity { inode: file.ino(), size: file.len(), changed_ns },
            volume: None,
            seal: None,
        }],
        provenance: Provenance::crash_consistent(),
        annotations: Default::default(),
    }
}

impl Service {
    fn exchange(&self, request: &[u8]) -> Vec<u8> {
        let _inside = self.runtime.enter();
        (self.serve)(request)
    }
}

/// Takes one answer off `rest`, and checks it.
fn take_answer<'a>(rest: &'a [u8], request: &[u8]) -> &'a [u8] {
    let shown = || String::from_utf8_lossy(request).into_owned();
    let end = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", shown()));
    let head = std::str::from_utf8(&rest[..end]).expect("the head is text");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).and_then(|line| line.get(2..5));
    let status: u16 = status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head:?}"));
    assert!(![500, 501].contains(&status), "{head}\nto {:?}", shown());
    let header = |name: &str| {
        let mut values = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        values.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    assert!(header("x-request-id").is_some() || status == 100, "{head}");
    let body = &rest[end + 4..];
    // The answer to HEAD has the length of the body that it does not have.
    if status < 200 || status == 204 || status == 304 || body.is_empty() || body.starts_with(b"HTTP/1.") {
        return body;
    }
    if header("transfer-encoding") == Some("chunked") {
        return after_chunks(body);
    }
    let Some(length) = header("content-length") else { return &[] };
    let length: usize = length.parse().unwrap_or_else(|_| panic!("{head}"));
    assert!(length <= body.len(), "{} bytes of {length}: {head}", body.len());
    if status >= 400 {
        let error: serde_json::Value = serde_json::from_slice(&body[..length]).unwrap_or_else(|_| panic!("{head}"));
        assert!(error["code"].is_string() || error["problems"].is_array(), "{error}");
    }
    &body[length..]
}

fn after_chunks(mut body: &[u8]) -> &[u8] {
    loop {
        let end = body.windows(2).position(|end| end == b"\r\n").expect("the length of a chunk");
        let length = std::str::from_utf8(&body[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let next = end + 2 + length.expect("the length of a chunk") + 2;
        body = body.get(next..).expect("a whole chunk");
        if length == Some(0) {
            return body;
        }
    }
}

fuzz_target!(|request: &[u8]| -> Corpus {
    // The snapshot stays for the next input.
    if request.windows(6).any(|word| word == b"DELETE") {
        return Corpus::Reject;
    }
    let answers = service().exchange(request);
    let mut rest = &answers[..];
    while !rest.is_empty() {
        rest = take_answer(rest, request);
    }
    Corpus::Keep
});
