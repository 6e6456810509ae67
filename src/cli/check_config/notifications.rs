//! Checks the webhooks. No event is sent.

use super::findings::Findings;
use crate::config::{self, Trust};
use crate::webhooks::Client;

impl Findings {
    pub(crate) fn notifications(&mut self, notifications: &config::Notifications) {
        for webhook in &notifications.webhooks {
            let what = format!("webhook {}", webhook.name);
            if let Err(error) = Client::new(webhook.clone()) {
                self.bad(&what, error, "name a readable certificate in PEM format in ca_certificate");
                continue;
            }
            self.good(&what, format!("{}; to send an event, use: notifications test", webhook.origin));
            if webhook.trust == Trust::InsecureSkipVerify {
                self.doubtful(
                    &what,
                    "insecure_skip_verify: the receiver's certificate is not checked, so events can go to an attacker",
                    "name the receiver's certificate, or its CA, in ca_certificate",
                );
            }
        }
    }
}
