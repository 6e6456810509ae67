//! Hooks around operations, and `post` hooks that are still to be called.

pub mod pending;
pub mod with_hooks;
