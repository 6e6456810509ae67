//! Tickets: the right to read one disk of a snapshot for a while, for tools that cannot send a token.

mod service;

pub use service::Tickets;
