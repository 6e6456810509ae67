//! Whether a browser sends a request for a page of another site. Browsers show the certificate of their user for these
//! too. They say so in headers that no page can set.

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};

/// Fetch Metadata: the relation between the site of the page and the one that the request is for.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Whether a page of another site may have caused the request.
///
/// - A page of this service says `same-origin`. It also has an `Origin`, unless it only reads; this must be the service.
/// - The user says `none`, with an address or a bookmark. Such a request has no `Origin`: one with both may be a form of
///   another site that the browser sends again.
/// - Programs without a page send neither header. A browser from before 2023 may not send `Sec-Fetch-Site`; its requests
///   that change something have an `Origin`. They are refused, also those of the service's own page.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    let sites = || headers.get_all(SEC_FETCH_SITE).iter();
    let origins = || headers.get_all(ORIGIN).iter();
    let is_of_own_page = headers.contains_key(SEC_FETCH_SITE)
        && sites().all(|site| site == "same-origin")
        && origins().all(|origin| is_this_service(origin, headers));
    let is_of_no_page = !headers.contains_key(ORIGIN) && sites().all(|site| site == "same-origin" || site == "none");
    !is_of_own_page && !is_of_no_page
}

/// Whether the origin is the host to which the request is sent. Certificates are shown over TLS only.
fn is_this_service(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let of = |value: &HeaderValue| value.to_str().ok().map(str::to_ascii_lowercase);
    let host = headers.get(HOST).and_then(of);
    host.is_some_and(|host| of(origin).and_then(|origin| Some(origin.strip_prefix("https://")? == host)) == Some(true))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn is_refused(lines: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        is_cross_site(&headers)
    }

    const SITE: &str = SEC_FETCH_SITE;
    const OWN: (&str, &str) = ("origin", "https://host.example:5544");

    #[test]
    fn own_pages_users_and_programs_are_admitted() {
        for lines in [
            &[][..],
            &[(SITE, "none")],
            &[(SITE, "same-origin")],
            &[(SITE, "none"), (SITE, "same-origin")],
            &[(SITE, "same-origin"), OWN],
            &[(SITE, "same-origin"), ("origin", "https://HOST.example:5544")],
        ] {
            let lines = [&[("host", "host.example:5544")], lines].concat();
            assert!(!is_refused(&lines), "{lines:?}");
        }
        assert!(!is_refused(&[("host", "host.example"), (SITE, "same-origin"), ("origin", "https://host.example")]));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        for lines in [
            &[OWN][..],
            &[("origin", "null")],
            &[("origin", "")],
            &[(SITE, "")],
            &[(SITE, "Same-Origin")],
            &[(SITE, "same-origin, cross-site")],
            &[(SITE, "cross-site")],
            &[(SITE, "same-site")],
            &[(SITE, "cross-site"), OWN],
            &[(SITE, "same-site"), OWN],
            &[(SITE, "none"), OWN],
            &[(SITE, "none"), (SITE, "same-origin"), OWN],
            &[(SITE, "same-origin"), (SITE, "cross-site")],
            &[(SITE, "cross-site"), (SITE, "same-origin"), OWN],
            &[(SITE, "same-origin"), ("origin", "null")],
            &[(SITE, "same-origin"), ("origin", "https://evil.example")],
            &[(SITE, "same-origin"), ("origin", "https://host.example")],
            &[(SITE, "same-origin"), ("origin", "https://host.example:5545")],
            &[(SITE, "same-origin"), ("origin", "https://host.example:5544.evil.example")],
            &[(SITE, "same-origin"), ("origin", "http://host.example:5544")],
            &[(SITE, "same-origin"), OWN, ("origin", "https://evil.example")],
        ] {
            let lines = [&[("host", "host.example:5544")], lines].concat();
            assert!(is_refused(&lines), "{lines:?}");
        }
        assert!(is_refused(&[(SITE, "same-origin"), OWN]), "without a host");
    }
}
