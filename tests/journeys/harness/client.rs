//! An API client for the tests.

use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{ClientBuilder, RequestBuilder};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::{Certificates, Exporter, PASSWORD, SECRET, SNAPSHOTS, USER, VM};

pub struct Client {
    http: reqwest::blocking::Client,
    base: String,
    pub token: String,
}

/// A complete HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that the status is 200; returns the JSON.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Checks that this is an error in the documented format; returns its `code`.
    pub fn error(&self, status: u16) -> String {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{body}");
        assert_eq!(self.header("content-type"), "application/json");
        let json = self.json();
        for field in ["error", "details", "code", "request_id"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
        }
        assert_eq!(json["request_id"], self.header("x-request-id"));
        json["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// A client without a token.
    pub fn new(exporter: &Exporter, certificates: &Certificates) -> Self {
        Self::at(exporter.port, certificates)
    }

    /// A client without a token of the service at this port of 127.0.0.1.
    pub fn at(port: u16, certificates: &Certificates) -> Self {
        Self::built(port, certificates, reqwest::blocking::Client::builder())
    }

    /// A client without a token, with the certificate of this name.
    pub fn with_certificate(exporter: &Exporter, certificates: &Certificates, name: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let [certificate, key] = ["pem", "key"].map(|kind| certificates.path(format!("{name}.{kind}")));
        let pem = [std::fs::read(certificate).unwrap(), std::fs::read(key).unwrap()].concat();
        let identity = reqwest::Identity::from_pem(&pem).unwrap();
        Self::built(exporter.port, certificates, reqwest::blocking::Client::builder().identity(identity))
    }

    fn built(port: u16, certificates: &Certificates, builder: ClientBuilder) -> Self {
        let ca = std::fs::read(certificates.ca()).unwrap();
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = builder
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(120))
            .no_proxy()
            .build()
            .unwrap();
        Self { http, base: format!("https://127.0.0.1:{port}"), token: String::new() }
    }

    /// A client on the Unix socket, as this user and without a token.
    pub fn local(exporter: &Exporter) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::blocking::Client::builder()
            .tls_certs_only([])
            .unix_socket(exporter.socket())
            .timeout(Duration::from_secs(120))
            .no_proxy()
            .build()
            .unwrap();
        Self { http, base: "http://localhost".to_owned(), token: String::new() }
    }

    pub fn logged_in(exporter: &Exporter, certificates: &Certificates) -> Self {
        let mut client = Self::new(exporter, certificates);
        client.token = text(&client.try_log_in(USER, PASSWORD).ok()["token"]);
        client
    }

    /// As another user of the manager, whose name begins with `test-`.
    pub fn logged_in_as(exporter: &Exporter, certificates: &Certificates, user: &str) -> Self {
        let mut client = Self::new(exporter, certificates);
        client.token = text(&client.try_log_in(user, PASSWORD).ok()["token"]);
        client
    }

    /// A client with a token that stays valid when the test moves the clocks.
    pub fn lasting(exporter: &Exporter, certificates: &Certificates) -> Self {
        let half = Duration::from_secs(20 * 31_536_000);
        let tokens = coriolis_ovm_exporter::testing::Tokens::new(&SECRET.into(), half);
        let mut client = Self::new(exporter, certificates);
        // Issued in the future, so that it is newer than a database that was rebuilt by a clock that the test moved.
        client.token = tokens.issue("admin", std::time::SystemTime::now() + half).unwrap();
        client
    }

    /// Sends credentials; does not keep the token.
    pub fn try_log_in(&self, user: &str, password: &str) -> Answer {
        let body = json!({"username": user, "password": password}).to_string();
        self.send(self.request(Method::POST, "/api/v1/auth/login").body(body))
    }

    /// Builds a request to the absolute path `path` with the token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// Sends a request; panics on failure.
    pub fn send(&self, request: RequestBuilder) -> Answer {
        self.send_twice(request).unwrap()
    }

    /// Sends a request, and a second time if the service has closed the idle connection: then it has not received the
    /// request.
    pub fn send_twice(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let again = request.try_clone();
        match (self.try_send(request), again) {
            (Err(error), Some(again)) if error.is_request() && !error.is_timeout() => self.try_send(again),
            (answer, _) => answer,
        }
    }

    /// Sends a request; fails if the connection breaks, also in the middle of the body.
    pub fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes()?.to_vec() })
    }

    /// `GET /api/v1` + `path`.
    pub fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, &format!("/api/v1{path}")))
    }

    pub fn post(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, &format!("/api/v1{path}")))
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, &format!("/api/v1{path}")))
    }

    /// Takes a snapshot of [`VM`]; returns its document.
    pub fn take_snapshot(&self) -> Value {
        self.post(SNAPSHOTS).ok()
    }

    pub fn take_snapshot_id(&self) -> String {
        text(&self.take_snapshot()["id"])
    }

    /// Takes a snapshot of [`VM`] with this `ttl`; returns its id.
    pub fn take_snapshot_with_ttl(&self, ttl: &str) -> String {
        let request = self.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
        text(&self.send(request.body(json!({"ttl": ttl}).to_string())).ok()["id"])
    }

    /// The ids of the snapshots of [`VM`], oldest first. The service reads no maps for this list.
    pub fn snapshot_ids(&self) -> Vec<String> {
        ids(&self.get(&format!("{SNAPSHOTS}?chunks=false")).ok())
    }

    /// The operations with pending post hooks, from `/status`.
    pub fn pending_hooks(&self) -> Value {
        self.get("/status").ok()["owed_hooks"].clone()
    }

    /// The document of a snapshot of [`VM`], compared to `base`.
    pub fn compare(&self, id: &str, base: &str) -> Value {
        self.get(&format!("/vms/{VM}/snapshots/{id}?compareTo={base}")).ok()
    }

    /// The content of a disk of a snapshot of [`VM`].
    pub fn disk(&self, id: &str, disk: &str) -> Vec<u8> {
        let answer = self.get(&format!("/vms/{VM}/snapshots/{id}/disks/{disk}"));
        assert_eq!(answer.status, 200);
        answer.body
    }

    /// A range of a disk, fetched with a Range request.
    pub fn disk_range(&self, id: &str, disk: &str, start: u64, length: u64) -> Vec<u8> {
        let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/{disk}");
        let range = format!("bytes={start}-{}", start + length - 1);
        let answer = self.send(self.request(Method::GET, &path).header("Range", range));
        assert_eq!(answer.status, 206);
        answer.body
    }
}

/// The content of a JSON string.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// The ids in a list of snapshots.
pub fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"])).collect()
}
