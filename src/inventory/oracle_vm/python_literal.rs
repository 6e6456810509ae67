//! The language of `vm.cfg`: Python literals, parsed and never evaluated.
//!
//! A source is a list of `NAME = <literal>` statements. Literals are those that `repr` prints in Python 2, and those
//! that users write by hand. Anything else (calls, names as values, operators, imports) is refused: the author of a
//! file must not be able to run code, or to define something that we do not see.

mod places;
mod strings;

use std::collections::BTreeMap;

pub use places::{Places, Scalar, parse_with_places};

/// In bytes. A real `vm.cfg` has one or two thousand.
pub const MAX_SOURCE: usize = 1 << 20;

/// Nested brackets, which also limits the recursion of the parser.
pub const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string with any prefix. Strings of Python 2 are bytes, which are read as UTF-8. Invalid bytes and lone
    /// surrogates become U+FFFD.
    Str(String),
    /// An integer in any base. A larger one is a [`SyntaxError`].
    Int(i128),
    Float(f64),
    Bool(bool),
    None,
    /// `[…]`
    List(Vec<Value>),
    /// `(…)` with a comma, or empty. Otherwise parentheses only group.
    Tuple(Vec<Value>),
    /// `{…}`, in the order of the source, repeated keys included.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or tuple.
    pub fn as_sequence(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

/// Contains nothing of the source, which may be a link to a file that the caller must not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    /// From 1. An unclosed bracket or string is reported where it opens.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    pub reason: String,
}

/// Parses assignments. The last one to a name counts, as in Python.
///
/// Line endings may be of any kind, a byte order mark is skipped, and lines may be indented. A source that was cut
/// inside a statement is an error. A cut between two statements, or inside a number at the end, is not noticed.
///
/// # Errors
/// The source contains anything but assignments of literals, or a NUL byte, as after a crash, or exceeds [`MAX_SOURCE`]
/// or [`MAX_DEPTH`].
pub fn parse_assignments(source: &str) -> Result<BTreeMap<String, Value>, SyntaxError> {
    let source = normalized(source)?;
    Parser { source: &source, rest: &source, depth: 0, places: None }.assignments().map(|(assignments, _)| assignments)
}

/// The source without a byte order mark. As in Python, every line ending becomes `\n`, also inside strings.
fn normalized(source: &str) -> Result<String, SyntaxError> {
    if source.len() > MAX_SOURCE {
        return Err(SyntaxError { line: 1, column: 1, reason: format!("the file is larger than {MAX_SOURCE} bytes") });
    }
    Ok(source.strip_prefix('\u{feff}').unwrap_or(source).replace("\r\n", "\n").replace('\r', "\n"))
}

/// The grammar. Strings are in a file of their own.
struct Parser<'a> {
    source: &'a str,
    /// The unread suffix of `source`.
    rest: &'a str,
    /// Open brackets. Inside them, a line end is a space.
    depth: usize,
    /// Where the parts of the source are, if that is wanted.
    places: Option<Places>,
}

impl<'a> Parser<'a> {
    fn assignments(mut self) -> Result<(BTreeMap<String, Value>, Option<Places>), SyntaxError> {
        if let Some(at) = self.source.find('\0') {
            return Err(self.error_at(&self.source[at..], "NUL byte: the file is damaged"));
        }
        let mut assignments = BTreeMap::new();
        loop {
            self.skip_blank_lines()?;
            if self.rest.is_empty() {
                return Ok((assignments, self.places));
            }
            let (name, value) = self.assignment()?;
            assignments.insert(name.to_owned(), value);
            self.skip_space()?;
            if !(self.rest.is_empty() || self.eat(';') || self.eat('\n')) {
                return Err(self.expected("the end of the line"));
            }
        }
    }

    fn assignment(&mut self) -> Result<(&'a str, Value), SyntaxError> {
        let name = self.word();
        if name.is_empty() {
            return Err(self.expected("`name = value`"));
        }
        self.skip_space()?;
        if !self.eat('=') {
            return Err(self.expected("`=` after the name"));
        }
        if let Some(places) = &mut self.places {
            places.begin_assignment(name);
        }
        Ok((name, self.value()?))
    }

    fn value(&mut self) -> Result<Value, SyntaxError> {
        self.skip_space()?;
        if let Some(text) = self.strings()? {
            return Ok(Value::Str(text));
        }
        match self.rest.chars().next() {
            Some('[') => Ok(Value::List(self.bracketed(']', Self::value)?.0)),
            Some('{') => Ok(Value::Dict(self.bracketed('}', Self::pair)?.0)),
            Some('(') => {
                let (mut items, comma) = self.bracketed(')', Self::value)?;
                match items.pop() {
                    Some(grouped) if items.is_empty() && !comma => Ok(grouped),
                    last => Ok(Value::Tuple(items.into_iter().chain(last).collect())),
                }
            }
            Some('0'..='9' | '.' | '+' | '-') => self.number(),
            Some('a'..='z' | 'A'..='Z' | '_') => self.constant(),
            _ => Err(self.expected("a value")),
        }
    }

    /// Comma-separated items up to `close`, and whether a comma follows the last one.
    fn bracketed<T>(
        &mut self,
        close: char,
        item: fn(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<(Vec<T>, bool), SyntaxError> {
        let open = self.rest;
        if self.depth == MAX_DEPTH {
            return Err(self.error_at(open, format!("more than {MAX_DEPTH} nested brackets")));
        }
        self.depth += 1;
        self.bump();
        let (mut items, mut comma) = (Vec::new(), false);
        loop {
            self.skip_space()?;
            if self.eat(close) {
                self.depth -= 1;
                return Ok((items, comma));
            }
            if self.rest.is_empty() {
                return Err(self.error_at(open, format!("missing `{close}` for this bracket")));
            }
            if !items.is_empty() && !comma {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
            items.push(item(self)?);
            self.skip_space()?;
            comma = self.eat(',');
        }
    }

    fn pair(&mut self) -> Result<(Value, Value), SyntaxError> {
        let key = self.value()?;
        self.skip_space()?;
        if !self.eat(':') {
            return Err(self.expected("`:` after a key"));
        }
        Ok((key, self.value()?))
    }

    fn constant(&mut self) -> Result<Value, SyntaxError> {
        let at = self.rest;
        let value = match self.word() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::None,
            _ => return Err(self.error_at(at, "expected a literal value, found a name")),
        };
        self.note_scalar(at, self.rest, None);
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let start = self.rest;
        let negative = self.eat('-');
        if !negative {
            self.eat('+');
        }
        self.skip_space()?;
        let at = self.rest;
        let mut previous = ' ';
        let text = self.take_while(|c| {
            let exponent_sign = matches!(c, '+' | '-') && matches!(previous, 'e' | 'E');
            previous = c;
            exponent_sign || c.is_ascii_alphanumeric() || matches!(c, '.' | '_')
        });
        if !text.starts_with(|c: char| c == '.' || c.is_ascii_digit()) {
            return Err(self.error_at(at, "expected a number after its sign"));
        }
        self.note_scalar(start, self.rest, None);
        if let Some(number) = integer(text) {
            return Ok(Value::Int(if negative { -number } else { number }));
        }
        // Without a point or an exponent it is a malformed integer, or too large for an exact float.
        match text.parse::<f64>() {
            Ok(number) if text.contains(['.', 'e', 'E']) => Ok(Value::Float(if negative { -number } else { number })),
            _ => Err(self.error_at(at, "expected a number within range")),
        }
    }

    /// A name; empty if none starts here.
    fn word(&mut self) -> &'a str {
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return "";
        }
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn skip_blank_lines(&mut self) -> Result<(), SyntaxError> {
        loop {
            self.skip_space()?;
            if !self.eat('\n') {
                return Ok(());
            }
        }
    }

    /// Skips spaces, comments and continued lines, and line ends inside brackets.
    fn skip_space(&mut self) -> Result<(), SyntaxError> {
        let in_brackets = self.depth > 0;
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\x0c') || (c == '\n' && in_brackets));
            if self.rest.starts_with('#') {
                let at = self.rest;
                self.take_while(|c| c != '\n');
                self.note_comment(at, self.rest);
            } else if let Some(continued) = self.rest.strip_prefix("\\\n") {
                if continued.is_empty() {
                    return Err(self.error_at(self.rest, "the file ends inside a continued line"));
                }
                self.rest = continued;
            } else {
                return Ok(());
            }
        }
    }

    fn take_while(&mut self, mut wanted: impl FnMut(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest.strip_prefix(wanted);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expected(&self, wanted: &str) -> SyntaxError {
        let found = match self.rest.chars().next() {
            None => ", found the end of the file",
            Some('\n') => ", found the end of the line",
            Some(_) => "",
        };
        self.error_at(self.rest, format!("expected {wanted}{found}"))
    }

    /// An error at the start of `rest`, a suffix of the source.
    fn error_at(&self, rest: &str, reason: impl Into<String>) -> SyntaxError {
        let before = &self.source[..self.source.len() - rest.len()];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        SyntaxError {
            line: 1 + before.matches('\n').count(),
            column: 1 + before[line_start..].chars().count(),
            reason: reason.into(),
        }
    }
}

/// An integer without a sign, as in Python 2 and 3: `0755` and `0o755` are octal, `12L` is long.
fn integer(text: &str) -> Option<i128> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix('l').unwrap_or(&text);
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)];
    let (radix, digits) = match prefixed.iter().find_map(|(prefix, radix)| Some((*radix, text.strip_prefix(prefix)?))) {
        Some(prefixed) => prefixed,
        None if text.starts_with('0') => (8, text),
        None => (10, text),
    };
    i128::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests;
