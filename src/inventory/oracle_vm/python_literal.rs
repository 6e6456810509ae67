//! Python literals read as data, never evaluated: the language of `vm.cfg`.
//!
//! A source is a list of `NAME = <literal>` statements. Literals are what `repr` prints in Python 2,
//! and what people type by hand. All else (calls, names as values, operators, imports) is refused:
//! who writes the file must not be able to make us run anything, nor to mean what we do not see.

mod strings;

use std::collections::BTreeMap;

/// Longest source that is read, in bytes. A real `vm.cfg` has one or two thousand.
pub const MAX_SOURCE: usize = 1 << 20;

/// How many brackets can be open at once, which also bounds the recursion of the parser.
pub const MAX_DEPTH: usize = 64;

/// A literal of Python.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string of any prefix. Python 2 strings are bytes: they are read as UTF-8, and what is not
    /// becomes U+FFFD, as does a lone surrogate.
    Str(String),
    /// An integer in any base; Python's own have no bound, and a larger one is a [`SyntaxError`].
    Int(i128),
    /// A number with a point or an exponent.
    Float(f64),
    /// `True` or `False`.
    Bool(bool),
    /// `None`.
    None,
    /// `[…]`
    List(Vec<Value>),
    /// `(…)`, where it is empty or has a comma: otherwise parentheses only group.
    Tuple(Vec<Value>),
    /// `{…}`, in the order of the source, repeated keys included.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or of a tuple.
    pub fn as_sequence(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

/// Why a source cannot be read. It repeats nothing of the source: that may be a file which its reader must not
/// see, under the name of a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    /// Where, counted from 1. What is never closed is reported where it was opened.
    pub line: usize,
    /// The character in that line, counted from 1.
    pub column: usize,
    /// What was expected, in a few words for the operator.
    pub reason: String,
}

/// Reads assignments; the last one of a name wins, as in Python.
///
/// Line endings may be of any kind, a byte order mark is skipped, and lines may be indented. A source
/// that was cut in the middle of a statement is an error. One that was cut between two, or inside of
/// a bare number that ends the file, cannot be told from a whole one.
///
/// # Errors
///
/// [`SyntaxError`] for anything but assignments of literals, for a NUL byte (Python refuses it, and a
/// crash leaves it), and past [`MAX_SOURCE`] or [`MAX_DEPTH`].
pub fn parse_assignments(source: &str) -> Result<BTreeMap<String, Value>, SyntaxError> {
    if source.len() > MAX_SOURCE {
        return Err(SyntaxError { line: 1, column: 1, reason: format!("the file is larger than {MAX_SOURCE} bytes") });
    }
    // Python reads every line ending as `\n`, inside of strings too.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source).replace("\r\n", "\n").replace('\r', "\n");
    Parser { source: &source, rest: &source, depth: 0 }.assignments()
}

/// A cursor over the source, and the grammar on top of it; strings have their own file.
struct Parser<'a> {
    source: &'a str,
    /// What is not read yet: a suffix of `source`.
    rest: &'a str,
    /// Brackets open here. Inside of them, a line's end is only a space.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn assignments(mut self) -> Result<BTreeMap<String, Value>, SyntaxError> {
        if let Some(at) = self.source.find('\0') {
            return Err(self.error_at(&self.source[at..], "NUL byte: the file is damaged"));
        }
        let mut assignments = BTreeMap::new();
        loop {
            self.skip_blank_lines()?;
            if self.rest.is_empty() {
                return Ok(assignments);
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
            return Err(self.error_at(open, format!("more than {MAX_DEPTH} brackets inside of each other")));
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
                return Err(self.error_at(open, format!("missing `{close}`: what opens here is never closed")));
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
        match self.word() {
            "True" => Ok(Value::Bool(true)),
            "False" => Ok(Value::Bool(false)),
            "None" => Ok(Value::None),
            _ => Err(self.error_at(at, "expected a literal value, and a name is none")),
        }
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
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
        if let Some(number) = integer(text) {
            return Ok(Value::Int(if negative { -number } else { number }));
        }
        // Without a point or an exponent it is a wrong integer, or one too large to be exact as a float.
        match text.parse::<f64>() {
            Ok(number) if text.contains(['.', 'e', 'E']) => Ok(Value::Float(if negative { -number } else { number })),
            _ => Err(self.error_at(at, "expected a number; this is none, or is out of range")),
        }
    }

    /// A name, or nothing where none starts here.
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

    /// Steps over spaces, comments and continued lines; inside of brackets, over line ends too.
    fn skip_space(&mut self) -> Result<(), SyntaxError> {
        let in_brackets = self.depth > 0;
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\x0c') || (c == '\n' && in_brackets));
            if self.rest.starts_with('#') {
                self.take_while(|c| c != '\n');
            } else if let Some(continued) = self.rest.strip_prefix("\\\n") {
                if continued.is_empty() {
                    return Err(self.error_at(self.rest, "the file ends inside of a continued line"));
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

/// An integer as Python 2 and 3 write it: `0755` and `0o755` are octal, `12L` is long. No sign.
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
