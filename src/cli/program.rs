//! The program: reads its arguments and its config, and runs the service or a command.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use super::args::{Args, Command, normalize_go_flags};
use super::check_config::{self, CheckStatus};
use super::{audit, client, logging, operator, support, terminal};
use crate::app::Opened;
use crate::app::confinement::Confinement;
use crate::config::{self, Config, ConfigError, ConfinementMode, Fault};
use crate::hooks::{Launcher, launcher};
use crate::http::operator_socket;
use crate::metrics::{Counter, Metrics};
use crate::service::{self, Notifier};

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
        Some(Command::HookLauncher { directory }) => {
            let log = logging::start(&config::Log::to_standard_error(), Counter::default())?;
            let served = launcher::serve(io::stdin(), directory.clone());
            log.flush();
            served?;
        }
        Some(Command::SupportBundle(bundle)) => return support::run(bundle, &args.config),
        Some(Command::SupportItem { part, path }) => support::print(*part, path)?,
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
    let (log, writer) =
        logging::prepare(&config.log, metrics.log_lines_dropped()).map_err(|error| cannot_open("log_file", error))?;
    let confined = confine(&config);
    // The first thread. It is confined too.
    writer.start()?;
    let outcome = confined.and_then(|(opened, confinement, launcher, notifier)| {
        let audit = audit::start(&config.audit, metrics.audit_lines_dropped());
        let audit = audit.map_err(|error| cannot_open("audit.file", error))?;
        let reopen = || {
            log.reopen();
            audit.reopen();
        };
        let config = (args.config.as_path(), &config);
        let outcome = service::run(config, metrics, opened, (confinement, launcher, notifier), reopen);
        audit.finish();
        outcome
    });
    log.flush();
    outcome
}

/// Starts the hook launcher, opens what needs other rights, and confines the rest of the service. The process must have
/// one thread.
fn confine(config: &Config) -> anyhow::Result<(Opened, Arc<Confinement>, Launcher, Notifier)> {
    let launcher = match config.confinement {
        ConfinementMode::Off => Err("confinement.mode is off".to_owned()),
        ConfinementMode::Auto => Launcher::start(config.hooks.directory.as_deref()).map_err(|error| {
            format!("nothing is restricted, because the hook launcher cannot be started: {error}; restart the service")
        }),
    };
    let (opened, notifier) = (Opened::new(config)?, Notifier::open());
    Ok(match launcher {
        Ok(launcher) => {
            operator_socket::prepare(config.api.socket.as_ref());
            (opened, Confinement::start(config), launcher, notifier)
        }
        Err(reason) => (opened, Confinement::off(reason), Launcher::InProcess, notifier),
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}
