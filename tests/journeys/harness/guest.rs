//! A guest's sync server, which records requests and can misbehave.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Certificates;
use super::serving::Serving;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerBehavior {
    Good,
    ServerError,
    Redirects,
    Slow,
    /// Sends a body without end.
    EndlessBody,
    /// Sends the beginning of a body, and nothing more.
    StalledBody,
}

struct Shared {
    sync: Mutex<Vec<ServerBehavior>>,
    post_sync: Mutex<ServerBehavior>,
    requests: Mutex<Vec<String>>,
}

pub struct Guest {
    pub port: u16,
    shared: Arc<Shared>,
    _serving: Serving,
}

impl Guest {
    /// Starts a server with the certificate `name`.
    pub fn start(certificates: &Certificates, name: &str) -> Self {
        let shared = Arc::new(Shared {
            sync: Mutex::new(vec![ServerBehavior::Good]),
            post_sync: Mutex::new(ServerBehavior::Good),
            requests: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let (port, serving) = Serving::start(certificates, name, "127.0.0.1:0", router);
        Self { port, shared, _serving: serving }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Sets the behavior for each `/sync` request in turn; the last one also applies to all later requests.
    pub fn set_behavior(&self, behavior: &[ServerBehavior]) {
        *self.shared.sync.lock().unwrap() = behavior.to_vec();
    }

    pub fn set_post_sync_behavior(&self, behavior: ServerBehavior) {
        *self.shared.post_sync.lock().unwrap() = behavior;
    }

    /// The requests since the last call: method, path and `Authorization`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.requests.lock().unwrap())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    shared.requests.lock().unwrap().push(format!("{} {path} {}", request.method(), authorization.unwrap_or_default()));
    let behavior = {
        let mut behavior = shared.sync.lock().unwrap();
        match path.as_str() {
            "/sync" if behavior.len() > 1 => behavior.remove(0),
            "/sync" => behavior[0],
            _ => *shared.post_sync.lock().unwrap(),
        }
    };
    let endless =
        |piece: &'static [u8], pause| axum::body::Body::new(Endless { piece: bytes::Bytes::from_static(piece), pause });
    match behavior {
        ServerBehavior::Good => "done".into_response(),
        ServerBehavior::ServerError => (StatusCode::INTERNAL_SERVER_ERROR, "no").into_response(),
        ServerBehavior::Redirects => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        ServerBehavior::Slow => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            "done".into_response()
        }
        ServerBehavior::EndlessBody => endless(&[b'x'; 16384], false).into_response(),
        ServerBehavior::StalledBody => endless(b"x", true).into_response(),
    }
}

/// A body that repeats `piece` without end; with `pause`, it stalls after the first.
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
