//! A guest's sync server: TLS, an account of what it was asked, and ways to misbehave.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use coriolis_ovm_exporter::{config, tls};

use super::Certificates;
use super::serving::Serving;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    Good,
    ServerError,
    Redirects,
    Slow,
    /// Its answer does not end.
    Huge,
    /// An answer that begins, and is never finished.
    Dawdles,
}

struct Shared {
    manners: Mutex<Vec<Manners>>,
    after: Mutex<Manners>,
    asked: Mutex<Vec<String>>,
}

pub struct Guest {
    pub port: u16,
    shared: Arc<Shared>,
    _serving: Serving,
}

impl Guest {
    /// A server with the certificate `name`.
    pub fn start(certificates: &Certificates, name: &str) -> Self {
        let shared = Arc::new(Shared {
            manners: Mutex::new(vec![Manners::Good]),
            after: Mutex::new(Manners::Good),
            asked: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let api = config::Api {
            bind: [127, 0, 0, 1].into(),
            port: 0,
            certificate: certificates.path(format!("{name}.pem")),
            key: certificates.path(format!("{name}.key")),
            client_ca: None,
        };
        let tls = Arc::new(arc_swap::ArcSwap::new(tls::server_config(&api).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Serving::start(runtime, listener, tls, router);
        Self { port, shared, _serving: serving }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// How it answers `/sync`: the first so, the next as the second, and all after them as the last.
    pub fn behave(&self, manners: &[Manners]) {
        *self.shared.manners.lock().unwrap() = manners.to_vec();
    }

    /// How it answers `/post-sync`.
    pub fn behave_after(&self, manners: Manners) {
        *self.shared.after.lock().unwrap() = manners;
    }

    /// What it was asked since the last time: path and `Authorization`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    shared.asked.lock().unwrap().push(format!("{} {path} {}", request.method(), authorization.unwrap_or_default()));
    let manners = {
        let mut manners = shared.manners.lock().unwrap();
        match path.as_str() {
            "/sync" if manners.len() > 1 => manners.remove(0),
            "/sync" => manners[0],
            _ => *shared.after.lock().unwrap(),
        }
    };
    let endless =
        |piece: &'static [u8], pause| axum::body::Body::new(Endless { piece: bytes::Bytes::from_static(piece), pause });
    match manners {
        Manners::Good => "done".into_response(),
        Manners::ServerError => (StatusCode::INTERNAL_SERVER_ERROR, "no").into_response(),
        Manners::Redirects => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        Manners::Slow => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            "done".into_response()
        }
        Manners::Huge => endless(&[b'x'; 16384], false).into_response(),
        Manners::Dawdles => endless(b"x", true).into_response(),
    }
}

/// A body of the same piece for ever; with a pause, of one, and then nothing more.
struct Endless {
    piece: bytes::Bytes,
    pause: bool,
}

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>> {
        if self.pause && self.piece.is_empty() {
            return std::task::Poll::Pending;
        }
        let piece = self.piece.clone();
        if self.pause {
            self.piece.clear();
        }
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(piece))))
    }
}
