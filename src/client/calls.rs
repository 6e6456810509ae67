//! The calls of the API that the commands need.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::error::ClientError;
use super::server::Client;
use crate::api;

/// Chunks in one page. A page is parsed whole.
const PAGE: usize = 20_000;

/// What a new snapshot should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSnapshot {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_disks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<String>,
}

/// A snapshot as the client needs it. The original exporter sends few of the fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Created {
    pub id: String,
    #[serde(default)]
    pub created_at: Option<jiff::Timestamp>,
    #[serde(default)]
    pub consistency: Option<String>,
    #[serde(default)]
    pub consistency_reason: Option<String>,
    #[serde(default)]
    pub freeze_ms: Option<u64>,
    #[serde(default)]
    pub hooks: Vec<serde_json::Value>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub definition: Option<serde_json::Value>,
    #[serde(default)]
    pub disks: Vec<CreatedDisk>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreatedDisk {
    pub name: String,
}

/// The name of a disk, and ranges of it.
pub type DiskRanges = (String, Vec<Range<u64>>);

/// What a list of changes applies to.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub mode: api::Mode,
    /// Why the mode is full, although there is a base.
    pub reason: Option<String>,
}

/// The server is foreign: a chunk outside the disk or out of order would corrupt the copy.
#[derive(Debug)]
pub struct Order {
    size: u64,
    after: u64,
}

impl Order {
    /// Of the chunks of a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, after: 0 }
    }

    /// The range of the next chunk.
    pub fn check(&mut self, start: u64, length: u64, disk: &str) -> Result<Range<u64>, ClientError> {
        let end = start.checked_add(length).filter(|end| *end <= self.size && length > 0 && start >= self.after);
        let end = end.ok_or_else(|| {
            ClientError::Protocol(format!("{disk}: the chunk at {start} of {length} bytes does not fit"))
        })?;
        self.after = end;
        Ok(start..end)
    }
}

impl Client {
    /// `None` for the original exporter, which has no such route.
    pub fn capabilities(&self) -> Result<Option<api::Capabilities>, ClientError> {
        none_if_missing(self.get("/capabilities"))
    }

    pub fn vms(&self) -> Result<Vec<api::Vm>, ClientError> {
        self.get("/vms")
    }

    /// The VMs as this host of a pool lists them within `limit`, without trying again.
    ///
    /// # Errors
    /// Other requests then go to another host.
    pub fn vms_of_host(&self, host: usize, limit: Duration) -> Result<Vec<api::Vm>, ClientError> {
        self.of_host(host, &|to| to.request(Method::GET, "/vms").timeout(limit))
    }

    /// Without their chunks, oldest first.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<Created>, ClientError> {
        self.get(&format!("/vms/{vm}/snapshots?chunks=false"))
    }

    /// Whether the service has a snapshot.
    pub(super) fn has_snapshot(&self, vm: &str, snapshot: &str) -> Result<bool, ClientError> {
        let found = none_if_missing(self.get::<Created>(&format!("/vms/{vm}/snapshots/{snapshot}?chunks=false")))?;
        Ok(found.is_some())
    }

    /// Creates a snapshot. With a key the request is repeated until it succeeds, and creates one snapshot at most.
    pub fn create<T: DeserializeOwned>(
        &self,
        vm: &str,
        new: &NewSnapshot,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(new).map_err(std::io::Error::from)?;
        let path = format!("/vms/{vm}/snapshots?chunks=false");
        let build = |to: &Connection| {
            let request = to.request(Method::POST, &path).header("content-type", "application/json");
            let request = request.body(body.clone());
            match key {
                Some(key) => request.header("idempotency-key", key),
                None => request,
            }
        };
        if key.is_some() { self.send_json(&build) } else { self.send_once(&build)?.json() }
    }

    /// Deletes a snapshot. It is no error if there is none.
    pub fn delete(&self, vm: &str, snapshot: &str) -> Result<(), ClientError> {
        none_if_missing(self.delete_existing(vm, snapshot)).map(|_| ())
    }

    /// Deletes a snapshot.
    pub fn delete_existing(&self, vm: &str, snapshot: &str) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/snapshots/{snapshot}");
        self.send(&|to| to.request(Method::DELETE, &path)).map(|_| ())
    }

    /// Keeps a snapshot from expiring for `ttl`.
    pub fn lease(&self, vm: &str, snapshot: &str, ttl: Duration) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/snapshots/{snapshot}/lease");
        let lease = api::TakeLease { ttl: format!("{}s", ttl.as_secs()) };
        let body = serde_json::to_vec(&lease).map_err(std::io::Error::from)?;
        let _: api::Lease = self.send_json(&|to| to.request(Method::POST, &path).body(body.clone()))?;
        Ok(())
    }

    /// Ends the user's lease.
    pub fn end_lease(&self, vm: &str, snapshot: &str) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/snapshots/{snapshot}/lease");
        self.send(&|to| to.request(Method::DELETE, &path)).map(|_| ())
    }

    /// Makes a ticket for a disk.
    pub fn ticket(&self, disk_path: &str, request: &api::CreateTicket) -> Result<api::NewTicket, ClientError> {
        let path = format!("{disk_path}/tickets");
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        self.send_once(&|to| to.request(Method::POST, &path).body(body.clone()))?.json()
    }

    /// The size of a disk and the version of its file. The version is empty if the server has none.
    pub fn head(&self, path: &str) -> Result<(u64, String), ClientError> {
        let body = self.send(&|to| to.request(Method::HEAD, path))?;
        let size = body.header("content-length").and_then(|text| text.parse().ok());
        let size = size.ok_or_else(|| ClientError::Protocol(format!("{path}: the service does not tell the size")))?;
        let etag = body.header("etag").filter(|etag| etag.starts_with('"'));
        Ok((size, etag.unwrap_or_default().to_owned()))
    }

    /// Calls `each` with the changes of a disk since `base`: the range, and whether it is zeros. They are in order and
    /// disjoint.
    pub fn compare(
        &self,
        disk_path: &str,
        base: Option<&str>,
        each: &mut dyn FnMut(Range<u64>, bool),
    ) -> Result<Comparison, ClientError> {
        let query = base.map(|base| format!("&compareTo={base}")).unwrap_or_default();
        let mut found: Option<(Comparison, Order)> = None;
        self.each_page(disk_path, &query, &mut |page| {
            let (size, mode, reason) = (page.size, page.mode, page.reason);
            let (_, order) = found.get_or_insert((Comparison { mode, reason }, Order::new(size)));
            for api::Chunk { start, length, kind, .. } in page.chunks {
                each(order.check(start, length, disk_path)?, kind == api::ChunkType::Zero);
            }
            Ok(())
        })?;
        let found = found.map(|(comparison, _)| comparison);
        found.ok_or_else(|| ClientError::Protocol(format!("{disk_path}: its map has no page")))
    }

    /// Calls `each` with each page of the map of a disk, in order. `query` has further parameters, each after `&`.
    pub fn each_page(
        &self,
        disk_path: &str,
        query: &str,
        each: &mut dyn FnMut(api::ChunkPage) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let (mut first, mut next) = (None, Some(0));
        while let Some(offset) = next {
            let path = format!("{disk_path}/chunks?startingOffset={offset}&maxResults={PAGE}{query}");
            let page: api::ChunkPage = self.get(&path)?;
            let what = (page.size, page.mode);
            if *first.get_or_insert(what) != what {
                return Err(ClientError::Changed(format!("{disk_path}: its map changed between two pages")));
            }
            next = page.next_offset;
            if next.is_some_and(|next| next <= offset) {
                return Err(ClientError::Protocol(format!("{disk_path}: the pages of its map do not advance")));
            }
            each(page)?;
        }
        Ok(())
    }

    /// The chunks that the original exporter lists. It lists no ranges that became zeros.
    pub fn compare_with_original(
        &self,
        vm: &str,
        snapshot: &str,
        base: Option<&str>,
    ) -> Result<Vec<DiskRanges>, ClientError> {
        #[derive(Deserialize)]
        struct Document {
            disks: Vec<Disk>,
        }
        #[derive(Deserialize)]
        struct Disk {
            name: String,
            chunks: Option<Vec<Chunk>>,
        }
        #[derive(Deserialize)]
        struct Chunk {
            start: u64,
            length: u64,
        }
        let base = base.map(|base| format!("&compareTo={base}")).unwrap_or_default();
        let document: Document = self.get(&format!("/vms/{vm}/snapshots/{snapshot}?squashChunks=true{base}"))?;
        let ranges = |chunks: Vec<Chunk>| {
            let range = |chunk: &Chunk| Some(chunk.start..chunk.start.checked_add(chunk.length)?);
            chunks.iter().map(range).collect::<Option<Vec<_>>>()
        };
        let disks = document.disks.into_iter().map(|disk| {
            let ranges = ranges(disk.chunks.unwrap_or_default());
            let problem = || ClientError::Protocol(format!("{}: a chunk has no end", disk.name));
            Ok((disk.name.clone(), ranges.ok_or_else(problem)?))
        });
        disks.collect()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send_json(&|to| to.request(Method::GET, path))
    }

    /// Gets a document that has to arrive within `limit`, without trying again.
    pub fn get_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, ClientError> {
        self.send_once(&|to| to.request(Method::GET, path).timeout(limit))?.json()
    }

    /// Checks that the process of the service answers within `limit`.
    pub fn check_health(&self, limit: Duration) -> Result<(), ClientError> {
        let body = self.send_once(&|to| to.request_outside(Method::GET, "/healthz").timeout(limit))?;
        body.json::<api::Health>().map(|_| ())
    }

    /// Gets bytes, and passes them to `write` in order. Once bytes were passed, it is not tried again.
    pub fn download(&self, path: &str, write: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), ClientError> {
        let mut body = self.send(&|to| to.request(Method::GET, path))?;
        loop {
            let piece = body.next(usize::MAX)?;
            if piece.is_empty() {
                return Ok(());
            }
            write(&piece)?;
        }
    }

    /// Ends the log-in of the client's token.
    pub fn log_out(&self) -> Result<(), ClientError> {
        self.send_once(&|to| to.request(Method::POST, "/auth/logout")).map(|_| ())
    }

    /// Revokes tokens.
    pub fn revoke(&self, revoke: &api::Revoke) -> Result<api::Revoked, ClientError> {
        let body = serde_json::to_vec(revoke).map_err(std::io::Error::from)?;
        self.send_once(&|to| to.request(Method::POST, "/auth/revoke").body(body.clone()))?.json()
    }

    /// Sends a test event to webhooks.
    pub fn test_webhooks(&self, test: &api::TestNotification) -> Result<Vec<api::TestedWebhook>, ClientError> {
        let body = serde_json::to_vec(test).map_err(std::io::Error::from)?;
        self.send_once(&|to| to.request(Method::POST, "/notifications/test").body(body.clone()))?.json()
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send_once(&|to| to.request(Method::POST, path))?.json()
    }
}

fn none_if_missing<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
