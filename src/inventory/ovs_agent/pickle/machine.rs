//! The stack machine that executes pickles.

use std::collections::HashMap;

use super::literal;
use super::node::{Id, Node};
use super::{BadPickle, MAX_DEPTH, MAX_STEPS, MAX_STRING_BYTES, MAX_VALUES, Reason, Value};

/// Executes a pickle up to its `STOP`.
pub(super) fn run(source: &[u8]) -> Result<Value, BadPickle> {
    let mut machine =
        Machine { source, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    for _ in 0..MAX_STEPS {
        let offset = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => return Ok(value),
            Err(reason) => return Err(BadPickle { offset, reason }),
        }
    }
    Err(BadPickle { offset: machine.at, reason: Reason::TooMuch { limit: MAX_STEPS, what: "opcodes" } })
}

const NO_VALUE: Reason = Reason::StackMismatch { what: "takes a value from an empty stack" };
const NO_MARK: Reason = Reason::StackMismatch { what: "takes what follows a mark, but there is none" };
const NO_KEY_VALUE: Reason = Reason::StackMismatch { what: "has a key without a value" };

struct Machine<'a> {
    source: &'a [u8],
    /// Offset of the next byte.
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// The height of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode. `STOP` returns the value.
    fn step(&mut self) -> Result<Option<Value>, Reason> {
        let opcode = self.byte()?;
        match opcode {
            b'.' => {
                let id = self.pop()?;
                let mut budget = Budget { values: MAX_VALUES, string_bytes: MAX_STRING_BYTES };
                return self.whole(id, 0, &mut budget).map(Some);
            }
            0x80 => match self.byte()? {
                0..=5 => {}
                version => return Err(Reason::Protocol { version }),
            },
            // FRAME is a hint for buffered reading.
            0x95 => drop(self.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            _ => {
                if !self.memo_opcode(opcode)? && !self.container_opcode(opcode)? {
                    let node = self.scalar(opcode)?;
                    self.push(node);
                }
            }
        }
        Ok(None)
    }

    fn memo_opcode(&mut self, opcode: u8) -> Result<bool, Reason> {
        let (put, key) = match opcode {
            b'p' => (true, self.decimal_key()?),
            b'q' => (true, u64::from(self.byte()?)),
            b'r' => (true, u64::from(u32::from_le_bytes(self.array()?))),
            0x94 => (true, self.memo.len() as u64),
            b'g' => (false, self.decimal_key()?),
            b'h' => (false, u64::from(self.byte()?)),
            b'j' => (false, u64::from(u32::from_le_bytes(self.array()?))),
            _ => return Ok(false),
        };
        if put {
            let top = self.top()?;
            self.memo.insert(key, top);
        } else {
            let id = *self.memo.get(&key).ok_or(Reason::StackMismatch { what: "fetches an unknown memo entry" })?;
            self.stack.push(id);
        }
        Ok(true)
    }

    fn container_opcode(&mut self, opcode: u8) -> Result<bool, Reason> {
        match opcode {
            b']' => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            b'd' => {
                let pairs = pairs(&self.pop_mark()?)?;
                self.push(Node::Dict(pairs));
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.insert(0, self.pop()?);
                }
                self.push(Node::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn scalar(&mut self, opcode: u8) -> Result<Node<'a>, Reason> {
        Ok(match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'I' => literal::int(self.line()?)?,
            b'L' => literal::long(self.line()?)?,
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => literal::binary_long(self.sized::<1>()?),
            0x8b => literal::binary_long(self.signed_sized()?),
            b'F' => literal::float(self.line()?)?,
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'S' => Node::Bytes(literal::quoted(self.line()?)?.into()),
            b'T' => Node::Bytes(self.signed_sized()?.into()),
            b'U' | b'C' => Node::Bytes(self.sized::<1>()?.into()),
            b'B' => Node::Bytes(self.sized::<4>()?.into()),
            0x8e => Node::Bytes(self.sized::<8>()?.into()),
            b'V' => Node::Text(literal::raw_unicode(self.line()?)?.into()),
            0x8c => Node::Text(literal::utf8(self.sized::<1>()?)),
            b'X' => Node::Text(literal::utf8(self.sized::<4>()?)),
            0x8d => Node::Text(literal::utf8(self.sized::<8>()?)),
            _ => return Err(not_data(opcode)),
        })
    }

    fn byte(&mut self) -> Result<u8, Reason> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let array = *self.source[self.at..].first_chunk().ok_or(Reason::Truncated)?;
        self.at += N;
        Ok(array)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Reason> {
        let len = usize::try_from(len).map_err(|_| Reason::Truncated)?;
        let taken = self.source[self.at..].get(..len).ok_or(Reason::Truncated)?;
        self.at += len;
        Ok(taken)
    }

    /// Bytes with a length of `N` bytes (at most eight) before them.
    fn sized<const N: usize>(&mut self) -> Result<&'a [u8], Reason> {
        let digits = self.array::<N>()?;
        self.take(digits.iter().rev().fold(0, |len, byte| len << 8 | u64::from(*byte)))
    }

    /// Bytes with a signed length before them, which must not be negative.
    fn signed_sized(&mut self) -> Result<&'a [u8], Reason> {
        let len = i32::from_le_bytes(self.array()?);
        self.take(u64::try_from(len).map_err(|_| Reason::Literal { what: "a length" })?)
    }

    /// The rest of this line, without its newline.
    fn line(&mut self) -> Result<&'a [u8], Reason> {
        let rest = &self.source[self.at..];
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or(Reason::Truncated)?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn decimal_key(&mut self) -> Result<u64, Reason> {
        let text = str::from_utf8(self.line()?.trim_ascii()).ok();
        text.and_then(|text| text.parse().ok()).ok_or(Reason::Literal { what: "the number of a memo" })
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    /// The top of the stack above the last mark.
    fn top(&self) -> Result<Id, Reason> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or(NO_VALUE)
    }

    fn pop(&mut self) -> Result<Id, Reason> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Removes the last mark and all values above it.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Reason> {
        Ok(self.stack.split_off(self.marks.pop().ok_or(NO_MARK)?))
    }

    fn append(&mut self, more: &[Id]) -> Result<(), Reason> {
        let list = self.top()?;
        match self.nodes.get_mut(list as usize) {
            Some(Node::List(items)) => items.extend_from_slice(more),
            _ => return Err(Reason::StackMismatch { what: "appends to a value that is not a list" }),
        }
        Ok(())
    }

    fn set_items(&mut self, more: &[Id]) -> Result<(), Reason> {
        let dict = self.top()?;
        match self.nodes.get_mut(dict as usize) {
            Some(Node::Dict(items)) => items.extend(pairs(more)?),
            _ => return Err(Reason::StackMismatch { what: "sets a key of a value that is not a dict" }),
        }
        Ok(())
    }

    /// The value of a node, including all nodes to which it refers.
    fn whole(&self, id: Id, depth: usize, budget: &mut Budget) -> Result<Value, Reason> {
        budget.values = budget.values.checked_sub(1).ok_or(Reason::TooMuch { limit: MAX_VALUES, what: "values" })?;
        let node = self.nodes.get(id as usize).ok_or(NO_VALUE)?;
        if depth == MAX_DEPTH && matches!(node, Node::List(_) | Node::Tuple(_) | Node::Dict(_)) {
            return Err(Reason::TooMuch { limit: MAX_DEPTH, what: "values inside of each other" });
        }
        let mut inner = |id: &Id| self.whole(*id, depth + 1, budget);
        Ok(match node {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::HugeInt => Value::HugeInt,
            Node::Float(value) => Value::Float(*value),
            Node::List(items) => Value::List(items.iter().map(inner).collect::<Result<_, _>>()?),
            Node::Tuple(items) => Value::Tuple(items.iter().map(inner).collect::<Result<_, _>>()?),
            Node::Dict(items) => {
                let pairs = items.iter().map(|(key, value)| Ok((inner(key)?, inner(value)?)));
                Value::Dict(pairs.collect::<Result<_, _>>()?)
            }
            Node::Bytes(bytes) => Value::Bytes(budget.string(bytes, bytes.len())?.to_vec()),
            Node::Text(text) => Value::Text(budget.string(text, text.len())?.to_string()),
        })
    }
}

/// The remaining size of the result.
struct Budget {
    values: usize,
    string_bytes: usize,
}

impl Budget {
    fn string<T>(&mut self, string: T, len: usize) -> Result<T, Reason> {
        let left = self.string_bytes.checked_sub(len);
        self.string_bytes = left.ok_or(Reason::TooMuch { limit: MAX_STRING_BYTES, what: "bytes of strings" })?;
        Ok(string)
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Reason> {
    let (pairs, rest) = items.as_chunks();
    if !rest.is_empty() {
        return Err(NO_KEY_VALUE);
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// The error for an opcode that does not create plain data.
fn not_data(opcode: u8) -> Reason {
    let refused = |opcode| Reason::Refused { opcode };
    let unsupported = |opcode| Reason::Unsupported { opcode };
    match opcode {
        b'c' => refused("GLOBAL"),
        b'i' => refused("INST"),
        b'o' => refused("OBJ"),
        b'R' => refused("REDUCE"),
        b'b' => refused("BUILD"),
        b'P' => refused("PERSID"),
        b'Q' => refused("BINPERSID"),
        0x81 => refused("NEWOBJ"),
        0x82 => refused("EXT1"),
        0x83 => refused("EXT2"),
        0x84 => refused("EXT4"),
        0x92 => refused("NEWOBJ_EX"),
        0x93 => refused("STACK_GLOBAL"),
        0x8f => unsupported("EMPTY_SET"),
        0x90 => unsupported("ADDITEMS"),
        0x91 => unsupported("FROZENSET"),
        0x96 => unsupported("BYTEARRAY8"),
        0x97 => unsupported("NEXT_BUFFER"),
        0x98 => unsupported("READONLY_BUFFER"),
        byte => Reason::Unknown { byte },
    }
}
