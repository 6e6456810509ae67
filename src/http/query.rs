//! The parameters of a query: which ones a route knows, and what they say.
//!
//! A parameter that is not known is ignored, as the original exporter does it. But a slip (`compareto`, `chunk`,
//! a parameter given twice) is refused with the right name: ignored, it would be answered with something else than
//! what was asked for.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Query};
use axum::http::header::ACCEPT;
use axum::http::request::Parts;

use super::failure::Failure;
use crate::app::Error;
use crate::app::compare::ChunkQuery;
use crate::app::compare::MapOptions;
use crate::app::snapshots::Adoption;
use crate::config::{Refine, block_size};
use crate::model::ChunkKind;

/// The parameters of a query that a route knows.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// The parameters of a request, of which `known` are those of its route.
    pub(super) async fn of<S: Send + Sync>(
        parts: &mut Parts,
        state: &S,
        known: &[&'static str],
    ) -> Result<Self, Failure> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
        let refused = |text: String| Err(Error::BadRequest(text).into());
        let mut seen = Vec::new();
        for (name, _) in &pairs {
            match known.iter().find(|known| *known == name) {
                Some(known) if seen.contains(known) => return refused(format!("{known} is given twice; keep one")),
                Some(known) => seen.push(known),
                None => {
                    if let Some(known) = known.iter().find(|known| is_slip_of(name, known)) {
                        return refused(format!("{name:?} is no parameter of this route; {known} may be meant"));
                    }
                }
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value, if there is one that is not empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.value(name).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, name: &str, limit: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.given(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= limit => Ok(Some(number)),
            _ => Err(Error::BadRequest(format!("{name}={text:?}: write a number from 0 to {limit}")).into()),
        }
    }

    /// How a map is to be put; chunks that touch are joined by default where `squash` says so.
    fn view(&self, squash: bool) -> Result<MapOptions, Failure> {
        let zeros = match self.given("zero") {
            None => None,
            Some("include") => Some(true),
            Some("omit") => Some(false),
            Some(other) => return Err(Error::BadRequest(format!("zero={other:?}: write include or omit")).into()),
        };
        let base = self.given("compareTo").map(str::parse).transpose();
        Ok(MapOptions {
            compare_to: base.map_err(|_| Error::NotFound("compareTo names no snapshot"))?,
            squash: self.bool_or("squashChunks", squash)?,
            chunks: self.bool_or("chunks", true)?,
            zeros,
            summary: self.bool_or("summary", false)?,
            refine: self.given("refine").map(refine).transpose()?,
        })
    }

    /// Refuses the parameters of a comparison for `what`, and says what to do `instead`.
    fn without_comparison(&self, what: &str, instead: &str) -> Result<(), Failure> {
        let Some(name) = ["compareTo", "refine"].into_iter().find(|name| self.given(name).is_some()) else {
            return Ok(());
        };
        Err(Error::BadRequest(format!("{name} is not for {what}; {instead} with {name}")).into())
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, Failure> {
        self.value(name).map_or(Ok(default), |text| parse_bool(name, text))
    }
}

/// Whether `name` was probably meant to be `known`: it differs in case, in `_` and `-`, or by a letter or two.
fn is_slip_of(name: &str, known: &str) -> bool {
    let plain = |name: &str| name.chars().filter(|c| !"_-".contains(*c)).collect::<String>().to_ascii_lowercase();
    // Short names are close to many others.
    let allowed = match known.len() {
        ..3 => 0,
        3..6 => 1,
        _ => 2,
    };
    distance(&plain(name), &plain(known), allowed) <= allowed
}

/// How many letters have to be added, left out, exchanged, or swapped with the next to make `a` of `b`; any
/// number past `limit` where it is more than that.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Also bounds the work, whatever a client sends.
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let exchanged = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = exchanged.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

/// `dryRun` and `manifests` of a query.
pub(super) struct AdoptQuery(pub Adoption);

impl<S: Send + Sync> FromRequestParts<S> for AdoptQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let known = ["dryRun", "manifests"];
        let query = Parameters::of(parts, state, &known).await?;
        // Elsewhere what is unknown is ignored. Here a slip would do what was only to be tried.
        if let Some((name, _)) = query.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(Error::BadRequest(format!("{name:?} is no parameter; there are dryRun and manifests")).into());
        }
        Ok(Self(Adoption { dry_run: query.bool_or("dryRun", false)?, manifests: query.bool_or("manifests", false)? }))
    }
}

/// The parameters of a snapshot's document.
const SNAPSHOT: [&str; 6] = ["squashChunks", "compareTo", "zero", "chunks", "summary", "refine"];

/// How a snapshot is to be put.
pub(super) struct SnapshotQuery(pub MapOptions);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Parameters::of(parts, state, &SNAPSHOT).await?.view(true).map(Self)
    }
}

/// How a list of snapshots is to be put.
pub(super) struct SnapshotsQuery(pub MapOptions);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotsQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &SNAPSHOT).await?;
        // Each snapshot would have to be compared with the base. A full list would be taken for the comparison.
        query.without_comparison("a list of snapshots", "GET one of them")?;
        query.view(true).map(Self)
    }
}

/// How a new snapshot is to be put.
pub(super) struct NewSnapshotQuery(pub MapOptions);

impl<S: Send + Sync> FromRequestParts<S> for NewSnapshotQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &SNAPSHOT).await?;
        // A comparison that failed on its way would cut the answer, and with it the id of the new snapshot.
        query.without_comparison("a new snapshot", "make it, and then GET it")?;
        query.view(false).map(Self)
    }
}

/// How the chunks of a disk are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFormat {
    /// A JSON document with a page of them.
    Page,
    /// A JSON text a line, as they are found.
    Lines,
}

/// Which chunks of a disk are wanted, and `Accept`.
pub(super) struct ChunksQuery(pub ChunkQuery, pub ResponseFormat);

/// The parameters of a disk's chunks.
const CHUNKS: [&str; 7] = ["squashChunks", "compareTo", "zero", "refine", "type", "startingOffset", "maxResults"];

/// Chunks of a page, where nothing else is said, and at most.
const PAGE: usize = 10_000;
const PAGE_LIMIT: usize = 100_000;

impl<S: Send + Sync> FromRequestParts<S> for ChunksQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &CHUNKS).await?;
        let wants_lines = accepts(parts, "application/x-ndjson");
        let form = if wants_lines { ResponseFormat::Lines } else { ResponseFormat::Page };
        let kind = match query.given("type") {
            None => None,
            Some("data") => Some(ChunkKind::Data),
            Some("zero") => Some(ChunkKind::Zero),
            Some(other) => return Err(Error::BadRequest(format!("type={other:?}: write data or zero")).into()),
        };
        let mut options = query.view(true)?;
        // To refine by default, all of the disk would have to be looked at for each page.
        options.refine = options.refine.or(Some(Refine::Never));
        if kind == Some(ChunkKind::Zero) {
            options.zeros = Some(true);
        }
        let from = query.number("startingOffset", u64::MAX)?.unwrap_or_default();
        let (usual, limit) = if wants_lines { (usize::MAX, usize::MAX) } else { (PAGE, PAGE_LIMIT) };
        let at_most = query.number("maxResults", limit as u64)?;
        if at_most == Some(0) {
            return Err(Error::BadRequest("maxResults=0: at least one".to_owned()).into());
        }
        let limit = at_most.map_or(usual, |number| usize::try_from(number).unwrap_or(usize::MAX));
        Ok(Self(ChunkQuery { options, kind, from, limit }, form))
    }
}

fn refine(text: &str) -> Result<Refine, Failure> {
    match text.parse::<u64>().ok().map(|bytes| (bytes, block_size(bytes))) {
        Some((0, _)) => Ok(Refine::Never),
        Some((_, Some(block))) => Ok(Refine::By(block)),
        _ => {
            let text = format!("refine={text:?}: write a power of two from 512 to 1048576, or 0 for none");
            Err(Error::BadRequest(text).into())
        }
    }
}

/// What Go's `strconv.ParseBool` takes: Python's clients send `True` and `False`.
fn parse_bool(name: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::BadRequest(format!("{name}={text:?}: write true or false")).into()),
    }
}

/// Whether `Accept` names this media type itself, and not by a pattern such as `*/*`.
pub(super) fn accepts(parts: &Parts, media_type: &str) -> bool {
    let accept = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut named = accept.flat_map(|value| value.split(',')).map(|kind| kind.split(';').next().unwrap_or_default());
    named.any(|kind| kind.trim().eq_ignore_ascii_case(media_type))
}

/// Whether the client asks for text, and not for JSON.
pub(super) struct AcceptsText(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for AcceptsText {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accepts(parts, "text/plain") && !accepts(parts, "application/json")))
    }
}

/// Whether a browser asks, for a page.
pub(super) struct WantsPage(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for WantsPage {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accepts(parts, "text/html")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Request, StatusCode};
    use axum::response::IntoResponse;

    #[test]
    fn booleans_are_those_of_go() {
        for (text, expected) in [
            ("1", true),
            ("t", true),
            ("T", true),
            ("TRUE", true),
            ("true", true),
            ("True", true),
            ("0", false),
            ("f", false),
            ("F", false),
            ("FALSE", false),
            ("false", false),
            ("False", false),
        ] {
            assert_eq!(parse_bool("chunks", text).unwrap(), expected, "{text}");
        }
        for text in ["", "yes", "tRUE", "2", " true"] {
            let status = parse_bool("chunks", text).unwrap_err().into_response().status();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        }
    }

    /// The name that is proposed for `query`; nothing where it is taken, or ignored.
    async fn refusal(query: &str, known: &[&'static str]) -> Option<String> {
        let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).unwrap().into_parts();
        match Parameters::of(&mut parts, &(), known).await {
            Ok(_) => None,
            Err(Failure::App(Error::BadRequest(text))) => Some(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn slips_are_refused_with_the_right_name_and_strangers_are_ignored() {
        for (slip, meant) in [
            ("compareto", "compareTo"),
            ("CompareTo", "compareTo"),
            ("COMPARETO", "compareTo"),
            ("compare_to", "compareTo"),
            ("compare-to", "compareTo"),
            ("comparTo", "compareTo"),
            ("compare", "compareTo"),
            ("comapreTo", "compareTo"),
            ("%63ompareto", "compareTo"),
            ("squash_chunks", "squashChunks"),
            ("squashChunk", "squashChunks"),
            ("squaschunks", "squashChunks"),
            ("chunk", "chunks"),
            ("Chunks", "chunks"),
            ("zeros", "zero"),
            ("zeor", "zero"),
            ("Summary", "summary"),
            ("refined", "refine"),
        ] {
            let told = refusal(&format!("{slip}=1"), &SNAPSHOT).await.unwrap_or_else(|| panic!("{slip} is taken"));
            assert!(told.contains(&format!("{meant} may be meant")), "{slip}: {told}");
        }
        for (slip, meant) in
            [("dryrun", "dryRun"), ("dry_run", "dryRun"), ("dry-run", "dryRun"), ("manifest", "manifests")]
        {
            let told = refusal(slip, &["dryRun", "manifests"]).await.unwrap();
            assert!(told.contains(meant), "{slip}: {told}");
        }
        for stranger in
            ["colour", "", "_", "_=1690000000", "id", "zone", "token", "ch", "%ff", "compareToAnything", "é", "&&=&"]
        {
            assert_eq!(refusal(stranger, &SNAPSHOT).await, None, "{stranger}");
            assert_eq!(refusal(stranger, &[]).await, None, "{stranger}");
        }
        // Two letters are close to any others.
        for (stranger, taken) in [("id=1", true), ("v=1", true), ("VM=1", false)] {
            assert_eq!(refusal(stranger, &["cost", "vm"]).await.is_none(), taken, "{stranger}");
        }
        assert_eq!(refusal(&format!("{}=1", "c".repeat(60_000)), &SNAPSHOT).await, None);
    }

    #[tokio::test]
    async fn a_parameter_is_given_once() {
        for twice in ["zero=&zero=", "chunks=true&chunks=true", "compareTo=a&zero=omit&compareTo=b", "zero&%7aero"] {
            let told = refusal(twice, &SNAPSHOT).await.unwrap_or_else(|| panic!("{twice} is taken"));
            assert!(told.contains("is given twice"), "{twice}: {told}");
        }
        assert_eq!(refusal("colour=red&colour=blue&zero=omit", &SNAPSHOT).await, None);
    }
}
