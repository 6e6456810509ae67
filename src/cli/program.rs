//! The program: reads its arguments and its config, and runs the service or a command.

use std::io;
use std::process::ExitCode;

use clap::Parser;

use super::args::{Args, Command, normalize_go_flags};
use super::check_config::{self, CheckStatus};
use super::{audit, client, logging, operator, terminal};
use crate::config::{self, ConfigError, Fault};
use crate::metrics::Metrics;
use crate::service;

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let args = Args::parse_from(normalize_go_flags(std::env::args_os()));
    run(&args).unwrap_or_else(|error| {
        terminal::print_error(&error);
        ExitCode::from(if error.is::<ConfigError>() { EX_CONFIG } else { client::exit_status(&error) })
    })
}

/// EX_CONFIG of sysexits.h. Another start would fail too, so service managers must not restart.
const EX_CONFIG: u8 = 78;

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => serve(args)?,
        Some(Command::CheckConfig) => {
            let findings = block_on(check_config::check_config(&args.config))?;
            check_config::table(&findings).print()?;
            if findings.iter().any(|finding| finding.status == CheckStatus::Bad) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Some(Command::Audit(command)) => return audit::run(command, &args.config),
        Some(Command::Operator(command)) => return operator::run(command, &args.config),
        Some(Command::Client(command)) => return client::run(command),
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let metrics = Metrics::default();
    let cannot_open = |key: &'static str, error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::ResourceBusy => "stop that process, or name another file: each service needs its own",
            _ => "name a file in a writable folder",
        };
        let fault = Fault::new(key, error.to_string(), remedy);
        // The disk may be full now, or mounted later.
        if error.kind() == io::ErrorKind::InvalidInput { fault } else { fault.transient() }
    };
    let log = logging::start(&config.log, metrics.log_lines_dropped());
    let log = log.map_err(|error| cannot_open("log_file", error))?;
    let audit = audit::start(&config.audit, metrics.audit_lines_dropped());
    let audit = audit.map_err(|error| cannot_open("audit.file", error))?;
    let reopen = || {
        log.reopen();
        audit.reopen();
    };
    let outcome = service::run(&config, metrics, reopen);
    audit.finish();
    log.flush();
    outcome
}

fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}
