//! Reads Python pickles as plain data. Nothing in them is ever executed as Python.
//!
//! A pickle is a program for a small stack machine. This one implements the opcodes that create plain values: those of
//! protocols 0 to 2, which Python 2 writes, and their equivalents in protocols 3 to 5. Opcodes that import, build or call
//! something are refused by name.
//!
//! A value can be memoized and fetched any number of times, so a few bytes can describe a value of any size, or one that
//! contains itself. The machine keeps references. Whole values are only created at the end, with limits.

mod literal;
mod machine;
mod node;

use std::borrow::Cow;

/// In bytes.
pub const MAX_SOURCE: usize = 1 << 24;

/// In opcodes.
pub const MAX_STEPS: usize = 1 << 18;

/// Nesting of lists, tuples and dicts, including the outermost.
pub const MAX_DEPTH: usize = 64;

/// Values in the result. A value that is referred to twice counts twice.
pub const MAX_VALUES: usize = 1 << 17;

/// Of all strings in the result.
pub const MAX_STRING_BYTES: usize = 1 << 25;

/// The content of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i128),
    /// An integer that is too large for [`Value::Int`].
    HugeInt,
    Float(f64),
    /// A string of Python 2, or `bytes`. Its encoding is unknown.
    Bytes(Vec<u8>),
    /// A unicode string. Lone surrogates become U+FFFD.
    Text(String),
    /// `[…]`
    List(Vec<Value>),
    /// `(…)`
    Tuple(Vec<Value>),
    /// `{…}`, in the order of the pickle, repeated keys included.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    /// The text of either kind of string. Bytes are read as UTF-8, with U+FFFD for invalid ones.
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Bytes(bytes) => Some(String::from_utf8_lossy(bytes)),
            Self::Text(text) => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    /// The value of a key in a dict. The last of several counts, as in Python.
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
    /// Of the opcode, in bytes.
    pub offset: usize,
    pub reason: Reason,
}

/// Why an opcode cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It would import, build or call something.
    #[error("{opcode} can import or call something, and is refused: only plain data is read")]
    Refused {
        /// Its name in Python's `pickletools`.
        opcode: &'static str,
    },
    /// It creates a kind of value that the agent does not write.
    #[error("{opcode} creates an unsupported kind of value")]
    Unsupported {
        /// Its name in Python's `pickletools`.
        opcode: &'static str,
    },
    #[error("{byte:#04x} is not an opcode: this is not a pickle, or it is damaged")]
    Unknown { byte: u8 },
    #[error("protocol {version} is not supported; expected 0 to 5")]
    Protocol { version: u8 },
    /// The pickle ends before the opcode does, or before `STOP`.
    #[error("the pickle is cut off")]
    Truncated,
    /// The opcode needs values that are not on the stack, or values of another type.
    #[error("{what}")]
    StackMismatch {
        /// What is missing.
        what: &'static str,
    },
    /// A malformed number or string.
    #[error("{what} is malformed")]
    Literal { what: &'static str },
    /// A limit of this module is exceeded.
    #[error("more than {limit} {what}")]
    TooMuch { limit: usize, what: &'static str },
}

/// Decodes a pickle. Bytes after its `STOP` are ignored, as in Python.
///
/// # Errors
/// `source` is not a pickle, uses other opcodes than those for plain data, or exceeds a limit of this module.
pub fn parse(source: &[u8]) -> Result<Value, BadPickle> {
    if source.len() > MAX_SOURCE {
        return Err(BadPickle { offset: 0, reason: Reason::TooMuch { limit: MAX_SOURCE, what: "bytes" } });
    }
    machine::run(source)
}

#[cfg(test)]
mod tests;
