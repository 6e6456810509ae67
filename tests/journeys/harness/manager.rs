//! A manager: TLS, one user, and ways to misbehave.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coriolis_ovm_exporter::{config, tls};

use super::Certificates;
use super::serving::Serving;

pub const USER: &str = "admin";
pub const PASSWORD: &str = "pa:ss wörd-7f3a";
/// base64 of `admin:pa:ss wörd-7f3a`
const BASIC: &str = "Basic YWRtaW46cGE6c3Mgd8O2cmQtN2YzYQ==";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    ServerError,
    /// This status and no body.
    Status(u16),
    Redirects,
    WebPage,
    Slow,
    /// Takes requests, and never answers.
    Hangs,
    /// Answers only who sends credentials, and takes the good ones.
    SilentToStrangers,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    asked: AtomicUsize,
}

pub struct Manager {
    pub port: u16,
    shared: Arc<Shared>,
    _serving: Serving,
}

impl Manager {
    /// A manager with the certificate `server`.
    pub fn start(certificates: &Certificates) -> Self {
        Self::start_with(certificates, "server")
    }

    /// A manager with the certificate `name`.
    pub fn start_with(certificates: &Certificates, name: &str) -> Self {
        Self::start_at(certificates, name, "127.0.0.1:0")
    }

    /// The same at an address of its own.
    pub fn start_at(certificates: &Certificates, name: &str, address: &str) -> Self {
        let shared = Arc::new(Shared { behaviour: Mutex::new(Behaviour::Good), asked: AtomicUsize::new(0) });
        let router =
            Router::new().route("/ovm/core/wsapi/rest/Repository/id", get(answer)).with_state(Arc::clone(&shared));
        let api = config::Api {
            bind: [127, 0, 0, 1].into(),
            port: 0,
            certificate: certificates.path(format!("{name}.pem")),
            key: certificates.path(format!("{name}.key")),
            client_ca: None,
        };
        let tls = Arc::new(arc_swap::ArcSwap::new(tls::server_config(&api).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Serving::start(runtime, listener, tls, router);
        Self { port, shared, _serving: serving }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let behaviour = *shared.behaviour.lock().unwrap();
    let good = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC);
    match behaviour {
        Behaviour::Good | Behaviour::SilentToStrangers if good => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], "[]").into_response()
        }
        Behaviour::SilentToStrangers if !headers.contains_key(header::AUTHORIZATION) => std::future::pending().await,
        Behaviour::Good | Behaviour::SilentToStrangers => StatusCode::UNAUTHORIZED.into_response(),
        Behaviour::Hangs => std::future::pending().await,
        Behaviour::ServerError => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Behaviour::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Behaviour::Redirects => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        Behaviour::WebPage => {
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], "\n<html>Please log in</html>").into_response()
        }
        Behaviour::Slow => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            StatusCode::OK.into_response()
        }
    }
}
