//! Values under construction.

use std::borrow::Cow;

/// A value under construction. It refers to others by index, so that a shared value exists once, and a value that
/// contains itself is harmless.
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    HugeInt,
    Float(f64),
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
}

/// The index of a node. There are never more nodes than steps.
pub(super) type Id = u32;
