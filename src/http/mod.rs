//! The HTTP server: connections, routes, parsing of requests, error responses, and bodies.

pub mod byte_range;
pub mod conditional;
pub mod operator_socket;
pub mod probe;
pub mod server;

mod accept;
mod authorization;
mod basic_token;
mod body;
mod connection;
mod connections;
mod create_body;
mod digest;
mod disk_handlers;
mod disk_response;
mod documentation;
mod exchanges;
mod extract;
mod failure;
mod forwarded;
mod handlers;
mod head;
mod heads;
mod json;
mod json_stream;
mod limits;
mod notification_handlers;
mod openapi;
mod paths;
mod peer;
mod peer_certificate;
mod query;
mod refusal;
mod request_id;
mod request_middleware;
mod routes;
mod session_handlers;
mod snapshot_document;
mod snapshot_handlers;
mod status_page;
mod ticket;
mod ui;

pub use connections::MAX_CONNECTIONS;
pub use peer::Peer;
pub use routes::router;
