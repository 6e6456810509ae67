//! The server's side of HTTP: routes, what requests say, what errors become, bytes out.

pub mod byte_range;
pub mod conditional;
pub mod server;

mod body;
mod connection;
mod connections;
mod create_body;
mod digest;
mod disk_response;
mod exchanges;
mod extract;
mod failure;
mod handlers;
mod head;
mod heads;
mod json;
mod json_stream;
mod paths;
mod query;
mod refusal;
mod request_id;
mod request_middleware;
mod routes;
mod snapshot_document;
mod status_page;

use std::net::SocketAddr;

pub use routes::router;

/// The address that a request came from, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);
