//! The page at `/ui`, for people: files in the program. They need no token, because they contain no data. Their scripts
//! log in and use the API as each client does.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::conditional::{StrongTag, is_known};
use super::failure::Failure;
use crate::app::App;

/// Nothing but the files of the page and the API. `require-trusted-types-for` keeps scripts from making HTML of texts:
/// the names of VMs are not trusted. Forms are sent by scripts only, so that a password is never part of a URL.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
    form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The browser may keep the files, but asks before it uses them: after an upgrade all files are of one version.
const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A file of the page.
struct File {
    name: &'static str,
    bytes: &'static [u8],
    tag: StrongTag,
}

impl File {
    fn media_type(&self) -> &'static str {
        match self.name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        }
    }
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("ui/", $name)).as_slice())),*]
    };
}

const INDEX: &str = "index.html";

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let files = files![
        "index.html",
        "icon.svg",
        "base.css",
        "controls.css",
        "parts.css",
        "views.css",
        "drawn.css",
        "main.js",
        "api.js",
        "dom.js",
        "format.js",
        "parts.js",
        "rights.js",
        "login.js",
        "host.js",
        "attention.js",
        "work.js",
        "vms.js",
        "vm.js",
        "chain.js",
        "actions.js",
        "disk.js",
        "map.js",
        "ranges.js",
        "growth.js",
        "chart.js",
    ];
    files.into_iter().map(|(name, bytes)| File { name, bytes, tag: StrongTag::new(&digest(bytes)) }).collect()
});

/// Differs between versions of a file. It protects nothing, so it need not be a cryptographic hash.
fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// `/ui` and the files below it.
pub(super) fn routes() -> Router<Arc<App>> {
    let page = get(|headers: HeaderMap| async move { answer(INDEX, &headers) });
    let file = get(|Path(name): Path<String>, headers: HeaderMap| async move { answer(&name, &headers) });
    Router::new().route("/ui", page.clone()).route("/ui/", page).route("/ui/{file}", file)
}

fn answer(name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return Failure::NoRoute.into_response();
    };
    let tag = [(ETAG, file.tag.as_str())];
    if is_known(headers, &file.tag) {
        return (StatusCode::NOT_MODIFIED, HEADERS, tag).into_response();
    }
    (HEADERS, tag, [(CONTENT_TYPE, file.media_type())], file.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn each_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/ui");
        let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let found: BTreeSet<String> = found.collect();
        let served: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
        assert_eq!(found, served);
    }

    #[test]
    fn files_name_only_each_other() {
        let index = FILES.iter().find(|file| file.name == INDEX).unwrap();
        let index = str::from_utf8(index.bytes).unwrap();
        for file in FILES.iter() {
            let text = str::from_utf8(file.bytes).unwrap();
            assert!(!text.contains("innerHTML") && !text.contains("eval("), "{}", file.name);
            let hosts = text.matches("://").count() - text.matches("http://www.w3.org/").count();
            assert_eq!(hosts, 0, "{} names a host", file.name);
            for imported in text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|other| other.name == imported), "{} imports {imported}", file.name);
            }
            // The browser loads all of them at once.
            assert!(file.name == INDEX || index.contains(&format!("/ui/{}\"", file.name)), "{}", file.name);
        }
    }
}
