//! The webhooks in the output of `status`.

use crate::api::WebhookStatus;
use crate::cli::client::table::{self, Align, Table};

/// A row for each webhook.
pub fn table_of(webhooks: &[WebhookStatus]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Text),
        ("SERVER", Align::Text),
        ("WAITING", Align::Right),
        ("LAST DELIVERY", Align::Left),
        ("STATUS", Align::Text),
    ]);
    for webhook in webhooks {
        table.row(vec![
            webhook.name.clone(),
            webhook.origin.clone(),
            webhook.queued.to_string(),
            webhook.last_success.as_deref().map_or_else(|| "-".to_owned(), table::local_text),
            status(webhook),
        ]);
    }
    table
}

fn status(webhook: &WebhookStatus) -> String {
    let mut status = match &webhook.last_error {
        Some(error) => format!("error: {}", error.reason),
        None if webhook.last_success.is_some() => "ok".to_owned(),
        None => "no event was sent since the start of the service".to_owned(),
    };
    if webhook.disabled {
        status.push_str("; it gets no events until the service is reloaded or restarted, or a test succeeds");
    }
    if webhook.dropped > 0 {
        status.push_str(&format!("; dropped events: {}", webhook.dropped));
    }
    status
}

/// Why events of this webhook may wait, for the warnings.
pub fn warning(webhook: &WebhookStatus) -> Option<String> {
    let reason = &webhook.last_error.as_ref()?.reason;
    Some(match webhook.queued {
        1 => format!("1 event waits: {reason}"),
        queued => format!("{queued} events wait: {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_has_a_row_with_its_state() {
        let mut webhooks: Vec<WebhookStatus> = serde_json::from_str(
            r#"[{"name": "chat", "origin": "https://chat", "queued": 0, "dropped": 0, "last_success": "then",
                 "disabled": false},
                {"name": "new", "origin": "https://new", "queued": 0, "dropped": 0, "last_success": null,
                 "disabled": false},
                {"name": "pager", "origin": "https://pager", "queued": 1, "dropped": 3, "last_success": null,
                 "last_error": {"at": "then", "reason": "answers 410 Gone"}, "disabled": true}]"#,
        )
        .unwrap();
        let expected = "\
NAME   SERVER         WAITING  LAST DELIVERY  STATUS
chat   https://chat         0  then           ok
new    https://new          0  -              no event was sent since the start of the service
pager  https://pager        1  -              error: answers 410 Gone; it gets no events until the service is \
                        reloaded or restarted, or a test succeeds; dropped events: 3
";
        assert_eq!(table_of(&webhooks).lines().as_str(), expected);
        let warnings: Vec<Option<String>> = webhooks.iter().map(warning).collect();
        assert_eq!(warnings, [None, None, Some("1 event waits: answers 410 Gone".to_owned())]);
        webhooks[2].queued = 2;
        assert_eq!(warning(&webhooks[2]).unwrap(), "2 events wait: answers 410 Gone");
    }
}
