//! The client of the API: connections, credentials, retries, and the calls as functions.
//!
//! Each thread has a [`Client`] with a connection of its own and blocks in it. A body is read as fast as its consumer
//! takes it, so memory does not grow with the size of a disk.

mod address;
mod backoff;
mod block_checksums;
mod calls;
mod connection;
mod credentials;
mod doubt;
mod error;
mod missing;
mod multipart;
mod pool;
mod ranges;
mod server;
mod token_state;
mod tokens;

pub use address::Address;
pub use backoff::Cancel;
pub use calls::{Comparison, Created, NewSnapshot, Order};
pub use credentials::{Credentials, Password, TokenCache, read_private};
pub use error::ClientError;
pub use pool::Host;
pub use ranges::{Fetch, RangeSink};
pub use server::{Client, Notice, Server, ServerOptions};
