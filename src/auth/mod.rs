//! Authentication: a log-in exchanges credentials for a token; a request exchanges the token for a [`Session`]. On the
//! Unix socket, the process at the other end has one.

mod audit_key;
mod authenticator;
mod client_address;
pub mod key;
mod login;
mod manager;
mod operators;
mod refresh_token;
mod requester;
mod session;
mod signing_keys;
mod ticket;
mod token;

pub use audit_key::AuditKey;
pub use authenticator::Authenticator;
pub use client_address::ClientAddress;
pub use key::KeyError;
pub use login::{Credentials, LoginError};
pub use operators::{LocalPeer, Operators};
pub use refresh_token::RefreshToken;
pub use requester::Requester;
pub use session::{Proof, Session, Source, is_reserved_name};
pub use ticket::{TicketHash, TicketSecret, without_ticket_secrets};
pub use token::{BadToken, CheckedToken, NewToken, Tokens, new_log_in};
