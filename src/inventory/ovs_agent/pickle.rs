//! Python pickles read as data, never run.
//!
//! A pickle is a program for a small stack machine. Only the opcodes that make plain values are known
//! here: those of protocols 0 to 2, as Python 2 writes them, and their like of protocols 3 to 5. What
//! imports, builds or calls something is refused by name.
//!
//! A value can be put aside and fetched any number of times, so a few bytes can mean a value of any
//! size, or one that contains itself. The machine keeps references; whole values are only made at the
//! end, under bounds.

mod literal;
mod machine;

use std::borrow::Cow;

/// Longest pickle that is read, in bytes.
pub const MAX_SOURCE: usize = 1 << 24;

/// Most opcodes that are executed.
pub const MAX_STEPS: usize = 1 << 18;

/// How many lists, tuples and dicts can be inside of each other, the outermost counted.
pub const MAX_DEPTH: usize = 64;

/// Most values that a result has, however often it refers to one.
pub const MAX_VALUES: usize = 1 << 17;

/// Most bytes that the strings of a result have together.
pub const MAX_STRING_BYTES: usize = 1 << 25;

/// What a pickle means.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i128),
    /// An integer that is too large for [`Value::Int`]; nothing here needs to know which.
    HugeInt,
    /// A number with a point.
    Float(f64),
    /// A string of Python 2, or `bytes`: in no known encoding.
    Bytes(Vec<u8>),
    /// A string of characters. Lone surrogates become U+FFFD.
    Text(String),
    /// `[…]`
    List(Vec<Value>),
    /// `(…)`
    Tuple(Vec<Value>),
    /// `{…}`, in the order of the pickle, repeated keys included.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    /// The text of a string of either kind; bytes are read as UTF-8, and what is not becomes U+FFFD.
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Bytes(bytes) => Some(String::from_utf8_lossy(bytes)),
            Self::Text(text) => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    /// The value of a key of a dict; the last one where there are several, as in Python.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Dict(pairs) = self else { return None };
        let is_called = |key: &Self| match key {
            Self::Bytes(bytes) => bytes == name.as_bytes(),
            Self::Text(text) => text == name,
            _ => false,
        };
        pairs.iter().rev().find(|(key, _)| is_called(key)).map(|(_, value)| value)
    }
}

/// Why a pickle cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the pickle: {reason}")]
pub struct BadPickle {
    /// Where the opcode is that cannot be executed, in bytes from the start.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with an opcode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It would import, build or call something.
    #[error("{opcode} can import or call something, and is refused: only plain data is read")]
    Refused {
        /// Its name in Python's `pickletools`.
        opcode: &'static str,
    },
    /// It makes a value of a kind that the agent does not write.
    #[error("{opcode} makes a kind of value that is not read here")]
    Unsupported {
        /// Its name in Python's `pickletools`.
        opcode: &'static str,
    },
    /// No opcode at all.
    #[error("{byte:#04x} is no opcode: this is not a pickle, or it is damaged")]
    Unknown {
        /// The byte in its place.
        byte: u8,
    },
    /// A protocol that is not known.
    #[error("protocol {version} is not known, only 0 to 5 are")]
    Protocol {
        /// Its number.
        version: u8,
    },
    /// The pickle ends before the opcode does, or before `STOP`.
    #[error("the pickle is cut off")]
    Truncated,
    /// The opcode takes more than there is, or something of another kind.
    #[error("{what}")]
    PathError {
        /// What is missing.
        what: &'static str,
    },
    /// A number or a string that is not written as one.
    #[error("this is not how {what} is written")]
    Literal {
        /// What it should be.
        what: &'static str,
    },
    /// One of the bounds of this module.
    #[error("too much: more than {limit} {what}")]
    TooMuch {
        /// The bound.
        limit: usize,
        /// What it is on.
        what: &'static str,
    },
}

/// The value that a pickle stands for. What comes after its `STOP` is not read, as in Python.
///
/// # Errors
/// [`BadPickle`] for what is no pickle, has opcodes that do more than make plain values, or goes past
/// the bounds of this module.
pub fn parse(source: &[u8]) -> Result<Value, BadPickle> {
    if source.len() > MAX_SOURCE {
        return Err(BadPickle { offset: 0, reason: Reason::TooMuch { limit: MAX_SOURCE, what: "bytes" } });
    }
    machine::run(source)
}

#[cfg(test)]
mod tests;
