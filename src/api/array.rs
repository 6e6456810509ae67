//! A JSON array whose elements are made while it is written out.

use std::sync::{Mutex, PoisonError};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};

/// An array of what an iterator yields. It can be written out once.
pub struct Array<T>(Mutex<Option<Elements<T>>>);

type Elements<T> = Box<dyn Iterator<Item = T> + Send>;

impl<T> Array<T> {
    /// The array of `elements`.
    pub fn new(elements: impl Iterator<Item = T> + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(elements))))
    }
}

impl<T> std::fmt::Debug for Array<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Array")
    }
}

impl<T: Serialize> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let elements = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        serializer.collect_seq(elements.ok_or_else(|| S::Error::custom("an array was written out twice"))?)
    }
}
