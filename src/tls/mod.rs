//! TLS for the server and for every client of the service: one place that builds rustls configurations.

mod client;
mod client_certificate;
mod clients;
mod errors;
mod key_file;
mod pem;
mod server;
mod verifier;

pub use client::client_config;
pub use client_certificate::ClientCertificate;
pub use clients::AcceptedClients;
pub use errors::{Untrusted, has_no_common_parameters, is_invalid_certificate, with_causes};
pub use key_file::insecurity;
pub use pem::{server_name, validity};
pub use server::{ServerTls, server_tls};
