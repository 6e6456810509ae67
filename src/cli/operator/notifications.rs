//! `notifications test`: sends a test event to webhooks.

use std::path::Path;
use std::process::ExitCode;

use super::args::{NotificationsCommand, TestArgs};
use super::service::Service;
use crate::api;
use crate::cli::client::table::{Align, Table};
use crate::cli::terminal::{self, Lines};

pub fn run(command: &NotificationsCommand, config: &Path) -> anyhow::Result<ExitCode> {
    match command {
        NotificationsCommand::Test(args) => test(args, config),
    }
}

fn test(args: &TestArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    let tested = client.test_webhooks(&api::TestNotification { webhook: args.webhook.clone() })?;
    let status = if tested.iter().all(|one| one.delivered) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        terminal::print_json(&tested, false)?;
        return Ok(status);
    }
    let mut table = Table::new(&[("WEBHOOK", Align::Left), ("DELIVERED", Align::Left), ("RESULT", Align::Text)]);
    for api::TestedWebhook { name, delivered, result } in tested {
        table.row(vec![name, if delivered { "yes" } else { "no" }.to_owned(), result]);
    }
    let mut lines = Lines::default();
    lines.append(&table.lines_within(terminal::size().map(|(columns, _)| columns)));
    lines.print()?;
    Ok(status)
}
