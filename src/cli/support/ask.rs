//! What the running service says about itself, over its Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::bounded::{Item, MAX_ITEM, within};

/// How long the service may take for an answer. A repository that hangs delays it.
const TIMEOUT: Duration = Duration::from_secs(30);

const ROUTES: &[(&str, &str, &str)] = &[
    ("status.json", "/api/v1/status", "the state of the service"),
    ("readyz.json", "/readyz", "whether it can do its work"),
    ("capabilities.json", "/api/v1/capabilities", "its limits"),
    ("repositories.json", "/api/v1/repositories", "its repositories"),
    ("vms.json", "/api/v1/vms", "the VMs, and why one cannot be snapshotted"),
    ("metrics.txt", "/metrics", "the metrics, if metrics.enabled is true"),
];

/// One item for each route.
pub fn items(socket: Option<&Path>) -> Vec<Item> {
    let ask = |route: &'static str| {
        let Some(socket) = socket.map(Path::to_owned) else { return Err("api.socket is \"\"".to_owned()) };
        within(TIMEOUT, move || get(&socket, route)).map_err(|error| format!("the service: {error}"))
    };
    ROUTES.iter().map(|(name, route, what)| Item::new(*name, format!("{what} (GET {route})"), ask(route))).collect()
}

/// The body of a response. A response of HTTP/1.0 has no chunks.
fn get(socket: &Path, route: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {route} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ITEM).read_to_end(&mut answer)?;
    let separator = b"\r\n\r\n";
    let end = answer.windows(separator.len()).position(|bytes| bytes == separator);
    let body = end.map_or(answer.len(), |end| end + separator.len());
    let head = String::from_utf8_lossy(&answer[..body]);
    let status = head.split(' ').nth(1).unwrap_or_default();
    // 503 has the reasons why it is not ready.
    if status == "200" || route == "/readyz" && status == "503" {
        Ok(answer.split_off(body))
    } else {
        Err(io::Error::other(format!("{route} was answered with {status:?}")))
    }
}
