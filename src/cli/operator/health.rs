//! `health`: whether the service answers.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::args::HealthArgs;
use super::service::Service;
use crate::client::Cancel;

const LIMIT: Duration = Duration::from_secs(10);

pub fn run(args: &HealthArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let service = Service::on_this_host(args.socket.as_deref(), config, &Cancel::default())?;
    service.check()?;
    service.client.check_health(LIMIT)?;
    Ok(ExitCode::SUCCESS)
}
