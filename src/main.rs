//! The program: reads its arguments and its config, and serves.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use coriolis_ovm_exporter::cli::{args, logging};
use coriolis_ovm_exporter::config;
use coriolis_ovm_exporter::http::service;

fn main() -> ExitCode {
    let args = args::Args::parse_from(args::with_two_dashes(std::env::args_os()));
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, once.
            let _ = writeln!(io::stderr(), "coriolis-ovm-exporter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &args::Args) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let log = logging::start(&config.log).map_err(|error| anyhow::anyhow!("log_file: {error}"))?;
    service::run(&config, || log.reopen())
}
