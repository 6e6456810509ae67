//! Where the scalars and comments of a source are, for changing its text.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Parser, SyntaxError, Value, normalized};

/// Places in a source, as ranges of bytes.
#[derive(Debug, Default)]
pub struct Places {
    /// In their order.
    pub scalars: Vec<Scalar>,
    /// In their order, with the `#`. A comment can be between two strings that are one scalar.
    pub comments: Vec<Range<usize>>,
    /// The assignment that is being parsed.
    assignment: (usize, String),
}

/// A string, number or constant, also as a key of a dictionary. Adjacent strings are one.
#[derive(Debug)]
pub struct Scalar {
    pub place: Range<usize>,
    /// The value of a string.
    pub text: Option<String>,
    /// The number of its assignment, which differs even if two assign the same name.
    pub assignment: usize,
    /// The name that it is assigned to.
    pub name: String,
}

/// As [`parse_assignments`](super::parse_assignments). Also returns the source with the line ends that the places
/// refer to, and the places.
///
/// # Errors
/// Those of [`parse_assignments`](super::parse_assignments).
pub fn parse_with_places(source: &str) -> Result<(BTreeMap<String, Value>, String, Places), SyntaxError> {
    let source = normalized(source)?;
    let parser = Parser { source: &source, rest: &source, depth: 0, places: Some(Places::default()) };
    let (assignments, places) = parser.assignments()?;
    Ok((assignments, source, places.unwrap_or_default()))
}

impl Places {
    pub(super) fn begin_assignment(&mut self, name: &str) {
        self.assignment = (self.assignment.0 + 1, name.to_owned());
    }
}

impl Parser<'_> {
    /// The range between two suffixes of the source.
    fn place(&self, start: &str, end: &str) -> Range<usize> {
        self.source.len() - start.len()..self.source.len() - end.len()
    }

    pub(super) fn note_scalar(&mut self, start: &str, end: &str, text: Option<&str>) {
        let place = self.place(start, end);
        let Some(places) = &mut self.places else { return };
        let (assignment, name) = places.assignment.clone();
        places.scalars.push(Scalar { place, text: text.map(str::to_owned), assignment, name });
    }

    pub(super) fn note_comment(&mut self, start: &str, end: &str) {
        let place = self.place(start, end);
        if let Some(places) = &mut self.places {
            places.comments.push(place);
        }
    }
}
