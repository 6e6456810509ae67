//! Who may ask: the manager's answer to credentials, tokens, and the [`Session`] of a good token.

pub mod key;
pub mod manager;
pub mod token;
pub mod trust;

pub use key::KeyError;
pub use manager::{Credentials, Manager, ManagerError};
pub use token::{BadToken, Session, Tokens};
pub use trust::client_config;
