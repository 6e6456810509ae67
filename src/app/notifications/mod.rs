//! Tells webhooks what happened. Events wait in the database, so a crash loses none, and a receiver that hangs delays
//! nothing.

mod backoff;
mod event;
mod queue;
mod sender;
mod service;

pub(crate) use event::Event;
pub use service::Notifications;
