//! What users write on a snapshot: labels and a description.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::printable::is_printable;

/// The most labels of a snapshot.
pub const MAX_LABELS: usize = 32;
const MAX_KEY: usize = 63;
/// In bytes.
const MAX_VALUE: usize = 255;
/// In bytes.
const MAX_DESCRIPTION: usize = 1024;

/// The labels and the description of a snapshot, within their limits. They are fixed when it is created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    labels: BTreeMap<String, String>,
    description: Option<String>,
}

/// Why labels or a description are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnotation {
    #[error("labels has {0} entries; expected at most {MAX_LABELS}")]
    TooManyLabels(usize),
    #[error(transparent)]
    Key(#[from] BadLabelKey),
    #[error("labels: the value of {0:?} is invalid; expected at most {MAX_VALUE} bytes without control characters")]
    Value(String),
    #[error("description is invalid; expected at most {MAX_DESCRIPTION} bytes without control characters")]
    Description,
}

/// The key of a label is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the label {0:?} is invalid; expected 1 to {MAX_KEY} of the characters A-Z a-z 0-9 . _ / -")]
pub struct BadLabelKey(String);

impl Annotations {
    /// # Errors
    /// If they exceed a limit or contain other than printable text. An empty description is none.
    pub fn new(labels: BTreeMap<String, String>, description: Option<String>) -> Result<Self, BadAnnotation> {
        if labels.len() > MAX_LABELS {
            return Err(BadAnnotation::TooManyLabels(labels.len()));
        }
        for (key, value) in &labels {
            check_key(key)?;
            if value.len() > MAX_VALUE || !is_printable(value) {
                return Err(BadAnnotation::Value(key.clone()));
            }
        }
        let description = description.filter(|text| !text.is_empty());
        if description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION || !is_printable(text)) {
            return Err(BadAnnotation::Description);
        }
        Ok(Self { labels, description })
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }
}

fn check_key(key: &str) -> Result<(), BadLabelKey> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(is_valid) {
        return Ok(());
    }
    Err(BadLabelKey(key.chars().take(MAX_KEY).collect()))
}

/// Selects snapshots by one label: `key` selects those that have it, `key=value` those where it has this value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    key: String,
    value: Option<String>,
}

impl LabelSelector {
    pub fn selects(&self, annotations: &Annotations) -> bool {
        let found = annotations.labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

impl FromStr for LabelSelector {
    type Err = BadLabelKey;

    fn from_str(text: &str) -> Result<Self, BadLabelKey> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        check_key(key)?;
        Ok(Self { key: key.to_owned(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(labels: &[(&str, &str)], description: &str) -> Result<Annotations, BadAnnotation> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Annotations::new(labels.collect(), Some(description.to_owned()))
    }

    #[test]
    fn annotations_are_within_their_limits() {
        let (long_key, long_value, long_text) = ("k".repeat(63), "v".repeat(255), "é".repeat(512));
        for (labels, description) in [
            (vec![], ""),
            (vec![("job", "nightly"), ("a.b/C_d-9", ""), (&long_key, &long_value)], long_text.as_str()),
            (vec![("k", "=,\"'\\ ü 漢字 ก้าว")], "before the \"upgrade\""),
        ] {
            let expected = Some(description).filter(|text| !text.is_empty());
            let found = annotated(&labels, description).unwrap();
            assert_eq!((found.labels().len(), found.description()), (labels.len(), expected), "{labels:?}");
        }
        for key in ["", "a b", "a=b", "ä", "a\n", &"k".repeat(64)] {
            assert!(matches!(annotated(&[(key, "")], ""), Err(BadAnnotation::Key(_))), "{key:?}");
        }
        for text in ["a\nb", "\0", "\x1b[2J", "a\u{202e}b", "\u{85}", "\u{200b}"] {
            assert_eq!(annotated(&[("k", text)], ""), Err(BadAnnotation::Value("k".to_owned())), "{text:?}");
            assert_eq!(annotated(&[], text), Err(BadAnnotation::Description), "{text:?}");
        }
        assert!(annotated(&[("k", &"v".repeat(256))], "").is_err() && annotated(&[], &"d".repeat(1025)).is_err());
        let many: Vec<String> = (0..33).map(|number| number.to_string()).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
        assert!(annotated(&many[..32], "").is_ok());
        assert_eq!(annotated(&many, ""), Err(BadAnnotation::TooManyLabels(33)));
    }

    #[test]
    fn a_selector_matches_key_or_key_and_value() {
        let annotations = annotated(&[("job", "nightly"), ("empty", ""), ("equation", "a=b")], "").unwrap();
        for (selector, selected) in [
            ("job", true),
            ("job=nightly", true),
            ("job=night", false),
            ("job=", false),
            ("empty", true),
            ("empty=", true),
            ("equation=a=b", true),
            ("Job", false),
            ("other", false),
        ] {
            let parsed: LabelSelector = selector.parse().unwrap();
            assert_eq!(parsed.selects(&annotations), selected, "{selector}");
        }
        for bad in ["", "=", "=nightly", "a b", "a b=c"] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad:?}");
        }
    }
}
