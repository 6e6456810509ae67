//! A value of the config that a reload replaces.

use std::sync::{Arc, PoisonError, RwLock};

/// Clones are handles of the same value. It is replaced as a whole.
#[derive(Debug, Default)]
pub struct Changeable<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Changeable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Changeable<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value at this time. Work that needs it several times takes it once.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}
