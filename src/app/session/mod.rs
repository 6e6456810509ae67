//! From credentials to a token.

pub mod login;
