//! Authentication: a log-in exchanges credentials for a token; a request exchanges the token for a [`Session`].

mod authenticator;
pub mod key;
mod login;
mod manager;
mod session;
mod token;

pub use authenticator::Authenticator;
pub use key::KeyError;
pub use login::{Credentials, LoginError};
pub use session::Session;
pub use token::{BadToken, Tokens};
