//! `status --watch`: the status again and again, until Ctrl-C.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::args::StatusArgs;
use super::service::Service;
use super::status::{self, Names};
use crate::api::ServiceStatus;
use crate::cli::client::exit::UsageError;
use crate::cli::client::signals::on_signal;
use crate::cli::client::table;
use crate::cli::terminal::{self, Lines, Screen};
use crate::client::ClientError;

/// A service that needs longer for a status does not respond.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(args: &StatusArgs, interval: Duration, config: &Path) -> anyhow::Result<ExitCode> {
    if terminal::size().is_none() {
        return Err(UsageError("--watch needs a terminal; leave it out, or use --json".to_owned()).into());
    }
    let service = Service::named(&args.target, config)?;
    let (mut names, mut last_answer) = (Names::default(), None);
    let mut answer = match ask(&service) {
        // This would not change while it is watched.
        Err(error) if !error.is_transient() => return Err(error.into()),
        answer => answer,
    };
    on_signal(|| Screen::leave_and_exit(0))?;
    let screen = Screen::enter()?;
    loop {
        match answer {
            Ok(status) => {
                names.learn(&status, &service.client);
                let width = terminal::size().map(|(columns, _)| columns);
                screen.show(&status::page(&status, &names, args.ascii || !terminal::is_utf8(), width))?;
                last_answer = Some(status.at);
            }
            Err(error) => screen.show(&silence(&error, last_answer.as_deref()))?,
        }
        thread::sleep(interval);
        answer = ask(&service);
    }
}

fn ask(service: &Service) -> Result<ServiceStatus, ClientError> {
    service.check()?;
    service.client.get_within("/status", PATIENCE)
}

/// A service that is restarted answers again soon.
fn silence(error: &ClientError, last_answer: Option<&str>) -> Lines {
    let mut lines = Lines::default();
    lines.add("The service does not respond. It is asked again until Ctrl-C.");
    let width = terminal::size().map_or(usize::MAX, |(columns, _)| columns);
    table::wrap(&error.to_string(), width).iter().for_each(|line| lines.add(line));
    if let Some(at) = last_answer {
        lines.add(format_args!("its last answer: {}", table::local_text(at)));
    }
    lines
}
