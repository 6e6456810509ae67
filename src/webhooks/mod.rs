//! Sends events to webhooks, signed as the specification Standard Webhooks says
//! (<https://www.standardwebhooks.com>).

mod client;
mod signature;

pub use client::{Client, Delivery};
