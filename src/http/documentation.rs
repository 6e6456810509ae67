//! The OpenAPI document, and a page that shows it: Swagger UI, whose files are in the program.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::failure::Failure;
use super::json::{self, JSON};
use super::openapi::parameters;
use super::paths::{DOCS, DOCS_FILE, OPENAPI};

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// The page loads its scripts, styles and data from this service only, and no other page can show it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file in the program.
#[derive(Clone)]
struct File {
    media_type: &'static str,
    is_compressed: bool,
    content: Bytes,
}

impl File {
    fn plain(media_type: &'static str, content: impl Into<Bytes>) -> Self {
        Self { media_type, is_compressed: false, content: content.into() }
    }

    /// All browsers accept gzip.
    fn compressed(media_type: &'static str, content: &'static [u8]) -> Self {
        Self { media_type, is_compressed: true, content: Bytes::from_static(content) }
    }

    /// Answers with the file, or with 304 if the client has it.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let mut hasher = DefaultHasher::new();
        self.content.hash(&mut hasher);
        let etag = format!("\"{:016x}\"", hasher.finish());
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let is_known = known.flat_map(|tags| tags.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == etag);
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(CONTENT_TYPE, self.media_type)], self.content.clone()).into_response()
        };
        let out = response.headers_mut();
        if self.is_compressed && !is_known {
            out.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        // A browser may keep the file, but asks each time whether it is still the same.
        out.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        out.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        if let Ok(etag) = HeaderValue::try_from(etag) {
            out.insert(ETAG, etag);
        }
        response
    }
}

/// The document of the service that runs.
pub(super) struct Documentation(File);

impl Documentation {
    pub(super) fn new(document: &Value) -> serde_json::Result<Self> {
        Ok(Self(File::plain(JSON, json::text(document)?)))
    }
}

/// This document.
///
/// The route exists unless the config has `api.docs = false`.
#[utoipa::path(
    get, path = OPENAPI, tag = "Service", operation_id = "getDocument",
    responses(
        (status = 200, description = "The document.", body = Object),
        (status = 304, description = "The document is the one that the client has."),
    ),
)]
pub(super) async fn document(Extension(documentation): Extension<Arc<Documentation>>, headers: HeaderMap) -> Response {
    documentation.0.answer(&headers)
}

/// A page for browsers that shows this document.
///
/// It loads nothing from another host. The route exists unless the config has `api.docs = false`.
#[utoipa::path(
    get, path = DOCS, tag = "Service", operation_id = "getDocumentation",
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8"),
        (status = 304, description = "The page is the one that the client has."),
    ),
)]
pub(super) async fn page(headers: HeaderMap) -> Response {
    File::plain(HTML, include_str!("documentation/page.html")).answer(&headers)
}

/// A file of the page for browsers.
#[utoipa::path(
    get, path = DOCS_FILE, tag = "Service", operation_id = "getDocumentationFile",
    params(parameters::DocumentationFile),
    responses(
        (status = 200, description = "The file.", content(
            (String = "text/javascript; charset=utf-8"), (String = "text/css; charset=utf-8")
        )),
        (status = 304, description = "The file is the one that the client has."),
        (status = 404, description = "not_found"),
    ),
)]
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Failure> {
    let file = match &*name {
        "start.js" => File::plain(JAVASCRIPT, include_str!("documentation/start.js")),
        "swagger-ui-bundle.js" => {
            File::compressed(JAVASCRIPT, include_bytes!("documentation/swagger-ui/swagger-ui-bundle.js.gz"))
        }
        "swagger-ui.css" => File::compressed(CSS, include_bytes!("documentation/swagger-ui/swagger-ui.css.gz")),
        _ => return Err(Failure::NoRoute),
    };
    Ok(file.answer(&headers))
}
