//! The servers that are compared, and their CPU time and memory.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::harness::process_stats::ticks;
use crate::harness::{VM, World, eventually_ok, memory_kib, run};

/// A server that serves the files of one snapshot.
pub struct Peer {
    pub name: String,
    pub port: u16,
    /// The path before a file's name.
    pub prefix: String,
    /// Empty, or the value of `Authorization`.
    pub authorization: String,
    pub ca: String,
    /// Whether it speaks NBD; then it only serves `full.img`.
    pub is_nbd: bool,
    /// The processes to measure.
    pids: Vec<u32>,
    _process: Option<Process>,
}

impl Peer {
    pub fn exporter(name: String, world: &World, snapshot: &str) -> Self {
        Self {
            name,
            port: world.exporter.port,
            prefix: format!("/api/v1/vms/{VM}/snapshots/{snapshot}/disks/"),
            authorization: format!("Bearer {}", world.client().token),
            ca: world.certificates.ca().display().to_string(),
            is_nbd: false,
            pids: vec![world.exporter.pid()],
            _process: None,
        }
    }

    /// nginx in its fastest configuration: buffers of 256 KiB were the best of 32 KiB to 1 MiB, sendfile does not help
    /// with TLS, and nothing is logged.
    pub fn nginx(world: &World, folder: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (certificate, key) = (world.certificates.path("server.pem"), world.certificates.path("server.key"));
        let buffers = std::env::var("BENCH_NGINX_BUFFERS").unwrap_or_else(|_| "2 256k".to_owned());
        let (root, dir_path) = (folder.display(), dir.path().display());
        let config = format!(
            "user root; daemon off; worker_processes auto; pid {dir_path}/pid; error_log {dir_path}/log;
             events {{ worker_connections 2048; multi_accept on; }}
             http {{
                 access_log off; sendfile off; tcp_nodelay on; output_buffers {buffers};
                 keepalive_requests 100000000; keepalive_timeout 600s; open_file_cache max=100;
                 default_type application/octet-stream; types {{ }}
                 server {{
                     listen 127.0.0.1:{port} ssl reuseport backlog=1024; root {root};
                     ssl_certificate {}; ssl_certificate_key {};
                     ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
                     ssl_buffer_size 16k; ssl_session_tickets on; ssl_session_cache shared:tls:10m;
                 }}
             }}",
            certificate.display(),
            key.display(),
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        command.arg("-e").arg(dir.path().join("log"));
        let process = Process { child: command.spawn().unwrap(), dir };
        let master = process.child.id();
        let workers = std::thread::available_parallelism().unwrap().get();
        let pids = eventually_ok("nginx starts", || {
            let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
            let pids: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
            let log = || fs::read_to_string(process.dir.path().join("log")).unwrap_or_default();
            if pids.len() < workers { Err(log()) } else { Ok(pids) }
        });
        let ca = world.certificates.ca().display().to_string();
        let (prefix, authorization) = ("/".to_owned(), String::new());
        Self { name: "nginx".to_owned(), port, prefix, authorization, ca, is_nbd: false, pids, _process: Some(process) }
    }

    /// qemu-nbd with TLS, for nbdcopy.
    pub fn nbd(world: &World, folder: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for (from, to) in
            [("ca.pem", "ca-cert.pem"), ("server.pem", "server-cert.pem"), ("server.key", "server-key.pem")]
        {
            fs::copy(world.certificates.path(from), dir.path().join(to)).unwrap();
        }
        let path = dir.path().display().to_string();
        let mut command = Command::new("qemu-nbd");
        command.args(["--read-only", "--persistent", "--shared=8", "--format=raw", "--bind=127.0.0.1"]);
        command.args(["--export-name=full.img", "--tls-creds=tls", "--object"]);
        command.arg(format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir={path}"));
        command.arg(format!("--port={port}")).arg(folder.join("full.img"));
        let process = Process { child: command.spawn().unwrap(), dir };
        eventually_ok("qemu-nbd listens", || std::net::TcpStream::connect(("127.0.0.1", port)));
        Self {
            name: "qemu-nbd".to_owned(),
            port,
            prefix: String::new(),
            authorization: String::new(),
            ca: path,
            is_nbd: true,
            pids: vec![process.child.id()],
            _process: Some(process),
        }
    }

    /// The CPU time of all threads so far, in seconds.
    pub fn cpu(&self) -> f64 {
        self.pids.iter().map(|pid| ticks(*pid)).sum::<u64>() as f64 / 100.0
    }

    /// The sum of `VmRSS` or `VmHWM` of /proc/<pid>/status over all processes, in KiB.
    pub fn memory(&self, what: &str) -> u64 {
        self.pids.iter().map(|pid| memory_kib(*pid, what)).sum()
    }

    /// Resets `VmHWM`.
    pub fn reset_peak(&self) {
        for pid in &self.pids {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        }
    }

    pub fn url(&self, file: &str) -> String {
        format!("https://localhost:{}{}{file}", self.port, self.prefix)
    }
}

struct Process {
    child: Child,
    dir: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        run(Command::new("kill").arg(self.child.id().to_string()));
        let _ = self.child.wait();
    }
}
