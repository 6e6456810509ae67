//! Parses the parameters of queries.
//!
//! Unknown parameters are ignored, as in the original exporter. But a probable typo (`compareto`, `chunk`) is refused
//! with the right name, and so are duplicates: ignoring them would return something other than requested.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use super::accept::accepts;
use super::failure::Failure;
use crate::app::Error;
use crate::app::compare::ChunkQuery;
use crate::app::compare::MapOptions;
use crate::app::snapshots::{AdoptOptions, DocumentOptions, Manifests};
use crate::config::{Refine, block_size};
use crate::model::annotations::MAX_LABELS;
use crate::model::{ChunkKind, LabelSelector};

/// Parameters that may be given several times.
const REPEATABLE: [&str; 1] = [LABEL];

const LABEL: &str = "label";

/// The parameters of a query.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Parses the parameters of a request. `known` are the parameters of its route.
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
                Some(known) if REPEATABLE.contains(known) => {}
                Some(known) if seen.contains(known) => return refused(format!("{known} is given twice; use it once")),
                Some(known) => seen.push(known),
                None => {
                    if let Some(known) = known.iter().find(|known| is_typo_of(name, known)) {
                        return refused(format!("{name:?} is not a parameter of this route; did you mean {known}?"));
                    }
                }
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value, if it is present and not empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.value(name).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, name: &str, limit: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.given(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= limit => Ok(Some(number)),
            _ => {
                Err(Error::BadRequest(format!("{name}={text:?} is invalid; expected a number from 0 to {limit}"))
                    .into())
            }
        }
    }

    /// The selection by labels.
    fn labels(&self) -> Result<Vec<LabelSelector>, Failure> {
        let mut labels = Vec::new();
        for (_, text) in self.0.iter().filter(|(name, _)| name == LABEL) {
            let label = text.parse().map_err(|error| {
                Error::BadRequest(format!("label={text:?} is invalid: {error}; expected label=key or label=key=value"))
            })?;
            labels.push(label);
        }
        // A snapshot has no more labels. This bounds the work.
        if labels.len() > MAX_LABELS {
            return Err(Error::BadRequest(format!("label is given more than {MAX_LABELS} times")).into());
        }
        Ok(labels)
    }

    /// The options of a map. `squash` is the default of `squashChunks`.
    fn map_options(&self, squash: bool) -> Result<MapOptions, Failure> {
        let zeros = match self.given("zero") {
            None => None,
            Some("include") => Some(true),
            Some("omit") => Some(false),
            Some(other) => {
                return Err(Error::BadRequest(format!("zero={other:?} is invalid; expected include or omit")).into());
            }
        };
        let refuse_full = match self.given("ifFull") {
            None | Some("full") => false,
            Some("error") => true,
            Some(other) => {
                return Err(Error::BadRequest(format!("ifFull={other:?} is invalid; expected full or error")).into());
            }
        };
        if refuse_full && self.given("compareTo").is_none() {
            let text = "ifFull=error is only for comparisons; add compareTo, or omit ifFull";
            return Err(Error::BadRequest(text.to_owned()).into());
        }
        let base = self.given("compareTo").map(str::parse).transpose();
        let compare_to = base.map_err(|_| Error::NotFound("the snapshot in compareTo does not exist"))?;
        let reverse = self.bool_or("reverse", false)?;
        if reverse && compare_to.is_none() {
            return Err(Error::BadRequest("reverse=true requires compareTo".to_owned()).into());
        }
        Ok(MapOptions {
            compare_to,
            reverse,
            squash: self.bool_or("squashChunks", squash)?,
            chunks: self.bool_or("chunks", true)?,
            zeros,
            summary: self.bool_or("summary", false)?,
            refuse_full,
            refine: self.given("refine").map(refine).transpose()?,
        })
    }

    /// The options of a snapshot's document. `squash` and `definition` are the defaults of `squashChunks` and `definition`.
    fn document_options(&self, squash: bool, definition: bool) -> Result<DocumentOptions, Failure> {
        Ok(DocumentOptions { map: self.map_options(squash)?, definition: self.bool_or("definition", definition)? })
    }

    /// Refuses the parameters of a comparison for `what`. The error says what to do `instead`.
    fn without_comparison(&self, what: &str, instead: &str) -> Result<(), Failure> {
        let Some(name) = ["compareTo", "refine"].into_iter().find(|name| self.given(name).is_some()) else {
            return Ok(());
        };
        Err(Error::BadRequest(format!("{name} is not supported for {what}; {instead} with {name}")).into())
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, Failure> {
        self.value(name).map_or(Ok(default), |text| parse_bool(name, text))
    }
}

/// Whether `name` is probably a typo of `known`: it differs only in case, in `_` and `-`, or by one or two letters.
fn is_typo_of(name: &str, known: &str) -> bool {
    let plain = |name: &str| name.chars().filter(|c| !"_-".contains(*c)).collect::<String>().to_ascii_lowercase();
    // Short names are similar to many others.
    let allowed = match known.len() {
        ..3 => 0,
        3..6 => 1,
        _ => 2,
    };
    distance(&plain(name), &plain(known), allowed) <= allowed
}

/// The edit distance of `a` and `b`: the number of letters to insert, delete, replace, or swap with the next. Returns
/// some number above `limit` if the distance is above that.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Also bounds the work for long names from clients.
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut min = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    min = min.min(rows[i - 2][j - 2] + 1);
                }
                min
            };
        }
    }
    rows[a.len()][b.len()]
}

/// The parameters `dryRun` and `manifests`.
pub(super) struct AdoptQuery(pub AdoptOptions);

impl<S: Send + Sync> FromRequestParts<S> for AdoptQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let known = ["dryRun", "manifests"];
        let query = Parameters::of(parts, state, &known).await?;
        // Other routes ignore unknown parameters. Here a typo of `dryRun` would make changes.
        if let Some((name, _)) = query.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(Error::BadRequest(format!("{name:?} is not a parameter; use dryRun and manifests")).into());
        }
        Ok(Self(AdoptOptions {
            dry_run: query.bool_or("dryRun", false)?,
            manifests: if query.bool_or("manifests", false)? { Manifests::All } else { Manifests::None },
        }))
    }
}

/// The parameters of a snapshot's document.
const SNAPSHOT: [&str; 9] =
    ["squashChunks", "compareTo", "ifFull", "reverse", "zero", "chunks", "summary", "refine", "definition"];

/// The parameters of a list of snapshots.
const SNAPSHOTS: [&str; 10] =
    ["squashChunks", "compareTo", "ifFull", "reverse", "zero", "chunks", "summary", "refine", "definition", LABEL];

/// The options of a snapshot's document.
pub(super) struct SnapshotQuery(pub DocumentOptions);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &SNAPSHOT).await?;
        query.document_options(true, true).map(Self)
    }
}

/// The selection and the options of a list of snapshots.
pub(super) struct SnapshotsQuery(pub Vec<LabelSelector>, pub DocumentOptions);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotsQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &SNAPSHOTS).await?;
        // Ignoring them would return full maps, which a client would take for a comparison.
        query.without_comparison("a list of snapshots", "GET one of them")?;
        // The definitions would make most of a list.
        Ok(Self(query.labels()?, query.document_options(true, false)?))
    }
}

/// Refuses a selection for the deletion of all snapshots.
pub(super) struct EverySnapshot;

impl<S: Send + Sync> FromRequestParts<S> for EverySnapshot {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &[LABEL]).await?;
        // Ignoring it would delete the other snapshots too.
        match query.value(LABEL) {
            None => Ok(Self),
            Some(_) => {
                let text = "label does not select snapshots to delete; list them with label, then delete each";
                Err(Error::BadRequest(text.to_owned()).into())
            }
        }
    }
}

/// The options of a new snapshot's document.
pub(super) struct NewSnapshotQuery(pub DocumentOptions);

impl<S: Send + Sync> FromRequestParts<S> for NewSnapshotQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &SNAPSHOT).await?;
        // A failing comparison would cut the response, and the client would not get the id of the new snapshot.
        query.without_comparison("a new snapshot", "create it, then GET it")?;
        query.document_options(false, true).map(Self)
    }
}

/// The format of a list of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFormat {
    /// A JSON document with a page of chunks.
    Page,
    /// One JSON text per line, streamed.
    Lines,
}

/// The selection of chunks, and the format from `Accept`.
pub(super) struct ChunksQuery(pub ChunkQuery, pub ResponseFormat);

/// The parameters of a disk's chunks.
const CHUNKS: [&str; 9] =
    ["squashChunks", "compareTo", "ifFull", "reverse", "zero", "refine", "type", "startingOffset", "maxResults"];

/// The default and the largest number of chunks of a page.
const PAGE: usize = 10_000;
pub(super) const MAX_PAGE: usize = 100_000;

impl<S: Send + Sync> FromRequestParts<S> for ChunksQuery {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &CHUNKS).await?;
        let wants_lines = accepts(parts, "application/x-ndjson");
        let format = if wants_lines { ResponseFormat::Lines } else { ResponseFormat::Page };
        let kind = match query.given("type") {
            None => None,
            Some("data") => Some(ChunkKind::Data),
            Some("zero") => Some(ChunkKind::Zero),
            Some(other) => {
                return Err(Error::BadRequest(format!("type={other:?} is invalid; expected data or zero")).into());
            }
        };
        let mut options = query.map_options(true)?;
        // No refinement by default, because it would examine the whole disk for each page.
        options.refine = options.refine.or(Some(Refine::Never));
        if kind == Some(ChunkKind::Zero) {
            options.zeros = Some(true);
        }
        let from = query.number("startingOffset", u64::MAX)?.unwrap_or_default();
        let (default, limit) = if wants_lines { (usize::MAX, usize::MAX) } else { (PAGE, MAX_PAGE) };
        let max_results = query.number("maxResults", limit as u64)?;
        if max_results == Some(0) {
            return Err(Error::BadRequest("maxResults=0 is invalid; expected at least 1".to_owned()).into());
        }
        let limit = max_results.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX));
        Ok(Self(ChunkQuery { options, kind, from, limit }, format))
    }
}

fn refine(text: &str) -> Result<Refine, Failure> {
    match text.parse::<u64>().ok().map(|bytes| (bytes, block_size(bytes))) {
        Some((0, _)) => Ok(Refine::Never),
        Some((_, Some(block))) => Ok(Refine::By(block)),
        _ => {
            let text =
                format!("refine={text:?} is invalid; expected a power of two from 512 to 1048576, or 0 for none");
            Err(Error::BadRequest(text).into())
        }
    }
}

/// Accepts the same values as Go's `strconv.ParseBool`. Python clients send `True` and `False`.
fn parse_bool(name: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::BadRequest(format!("{name}={text:?} is invalid; expected true or false")).into()),
    }
}

#[cfg(test)]
mod tests;
