//! A manager that can misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::watch;

use super::Certificates;
use super::serving::Serving;

pub const USER: &str = "admin";
pub const PASSWORD: &str = "pa:ss wörd-7f3a";
/// base64 of `admin:pa:ss wörd-7f3a`
const BASIC: &str = "Basic YWRtaW46cGE6c3Mgd8O2cmQtN2YzYQ==";
/// Users whose names begin like this exist too, in any case, and have the same password.
const MORE_USERS: &str = "test-";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagerBehavior {
    Good,
    ServerError,
    /// Answers with this status and no body.
    Status(u16),
    Redirects,
    WebPage,
    Slow,
    /// Answers rightly after this time.
    Late(Duration),
    /// Accepts requests and never answers.
    Hangs,
    /// Accepts requests, and answers them by the next behavior when that is set.
    Holds,
    /// Accepts good credentials, and never answers requests without credentials.
    IgnoresAnonymous,
}

struct Shared {
    behavior: watch::Sender<ManagerBehavior>,
    requests: AtomicUsize,
}

impl Shared {
    /// The behavior, when it is not to hold the request.
    async fn next_behavior(&self) -> ManagerBehavior {
        let mut behavior = self.behavior.subscribe();
        let next = behavior.wait_for(|behavior| *behavior != ManagerBehavior::Holds).await;
        *next.unwrap()
    }
}

pub struct Manager {
    pub port: u16,
    shared: Arc<Shared>,
    _serving: Serving,
}

impl Manager {
    /// Starts a manager with the certificate `server`.
    pub fn start(certificates: &Certificates) -> Self {
        Self::start_with(certificates, "server")
    }

    /// Starts a manager with the certificate `name`.
    pub fn start_with(certificates: &Certificates, name: &str) -> Self {
        Self::start_at(certificates, name, "127.0.0.1:0")
    }

    pub fn start_at(certificates: &Certificates, name: &str, address: &str) -> Self {
        let shared =
            Arc::new(Shared { behavior: watch::Sender::new(ManagerBehavior::Good), requests: AtomicUsize::new(0) });
        let router =
            Router::new().route("/ovm/core/wsapi/rest/Repository/id", get(answer)).with_state(Arc::clone(&shared));
        let (port, serving) = Serving::start(certificates, name, address, router);
        Self { port, shared, _serving: serving }
    }

    pub fn set_behavior(&self, behavior: ManagerBehavior) {
        self.shared.behavior.send_replace(behavior);
    }

    pub fn request_count(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let behavior = shared.next_behavior().await;
    let good = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC || is_further_user(value));
    if let ManagerBehavior::Late(time) = behavior {
        tokio::time::sleep(time).await;
    }
    match behavior {
        ManagerBehavior::Good | ManagerBehavior::Late(_) | ManagerBehavior::IgnoresAnonymous if good => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], "[]").into_response()
        }
        ManagerBehavior::IgnoresAnonymous if !headers.contains_key(header::AUTHORIZATION) => {
            std::future::pending().await
        }
        ManagerBehavior::Good | ManagerBehavior::Late(_) | ManagerBehavior::IgnoresAnonymous => {
            StatusCode::UNAUTHORIZED.into_response()
        }
        ManagerBehavior::Hangs | ManagerBehavior::Holds => std::future::pending().await,
        ManagerBehavior::ServerError => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        ManagerBehavior::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        ManagerBehavior::Redirects => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        ManagerBehavior::WebPage => {
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], "\n<html>Please log in</html>").into_response()
        }
        ManagerBehavior::Slow => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            StatusCode::OK.into_response()
        }
    }
}

fn is_further_user(authorization: &HeaderValue) -> bool {
    let encoded = authorization.as_bytes().strip_prefix(b"Basic ").unwrap_or_default();
    let text = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.is_some_and(|text| {
        let credentials = text.split_once(':');
        let is_known = |user: &str| user == "root" || user.to_lowercase().starts_with(MORE_USERS);
        credentials.is_some_and(|(user, password)| is_known(user) && password == PASSWORD)
    })
}
