use super::*;
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse;

#[test]
fn booleans_match_go() {
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

/// The error for `query`, or nothing if it is accepted.
async fn refusal(query: &str, known: &[&'static str]) -> Option<String> {
    let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).unwrap().into_parts();
    match Parameters::of(&mut parts, &(), known).await {
        Ok(_) => None,
        Err(Failure::App(Error::BadRequest(text))) => Some(text),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn typos_are_refused_and_unknown_names_are_ignored() {
    for (typo, right) in [
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
        let error = refusal(&format!("{typo}=1"), &SNAPSHOT).await.unwrap_or_else(|| panic!("{typo} is accepted"));
        assert!(error.contains(&format!("did you mean {right}?")), "{typo}: {error}");
    }
    for (typo, right) in [("dryrun", "dryRun"), ("dry_run", "dryRun"), ("dry-run", "dryRun"), ("manifest", "manifests")]
    {
        let error = refusal(typo, &["dryRun", "manifests"]).await.unwrap();
        assert!(error.contains(right), "{typo}: {error}");
    }
    for unknown in
        ["colour", "", "_", "_=1690000000", "id", "zone", "token", "ch", "%ff", "compareToAnything", "é", "&&=&"]
    {
        assert_eq!(refusal(unknown, &SNAPSHOT).await, None, "{unknown}");
        assert_eq!(refusal(unknown, &[]).await, None, "{unknown}");
    }
    // Any two letters are similar.
    for (name, accepted) in [("id=1", true), ("v=1", true), ("VM=1", false)] {
        assert_eq!(refusal(name, &["cost", "vm"]).await.is_none(), accepted, "{name}");
    }
    assert_eq!(refusal(&format!("{}=1", "c".repeat(60_000)), &SNAPSHOT).await, None);
}

#[tokio::test]
async fn duplicate_parameters_are_refused() {
    for twice in ["zero=&zero=", "chunks=true&chunks=true", "compareTo=a&zero=omit&compareTo=b", "zero&%7aero"] {
        let error = refusal(twice, &SNAPSHOT).await.unwrap_or_else(|| panic!("{twice} is accepted"));
        assert!(error.contains("is given twice"), "{twice}: {error}");
    }
    assert_eq!(refusal("colour=red&colour=blue&zero=omit", &SNAPSHOT).await, None);
}

#[tokio::test]
async fn labels_may_be_repeated_and_are_checked() {
    let labels = async |query: &str| {
        let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).unwrap().into_parts();
        SnapshotsQuery::from_request_parts(&mut parts, &()).await.map(|SnapshotsQuery(labels, _)| labels.len())
    };
    let many = |count: usize| vec!["label=a"; count].join("&");
    for (query, count) in [("", 0), ("label=a&label=b%3Dc&label=a", 3), ("label=a=b=c", 1), (&many(32), 32)] {
        assert_eq!(labels(query).await.unwrap(), count, "{query}");
    }
    for query in ["label", "label=", "label==a", "label=a%20b", "labels=a", "Label=a", &many(33)] {
        assert!(labels(query).await.is_err(), "{query}");
    }
}

#[tokio::test]
async fn a_selection_is_refused_where_all_snapshots_are_deleted() {
    for (query, accepted) in
        [("", true), ("colour=red", true), ("label=a", false), ("label", false), ("labels=a", false)]
    {
        let (mut parts, ()) = Request::delete(format!("/x?{query}")).body(()).unwrap().into_parts();
        assert_eq!(EverySnapshot::from_request_parts(&mut parts, &()).await.is_ok(), accepted, "{query}");
    }
}
