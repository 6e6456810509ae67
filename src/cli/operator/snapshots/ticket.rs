//! `snapshots ticket`: a URL for tools that cannot send a token.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::api::{CreateTicket, TicketOp};
use crate::backup::api_path;
use crate::cli::client::table;
use crate::cli::operator::args::SnapshotTicketArgs;
use crate::cli::operator::names::{find_snapshot, find_vm, snapshots_of};
use crate::cli::operator::service::{Service, readable_config};
use crate::cli::terminal::{self, Lines};
use crate::tls;

pub fn run(args: &SnapshotTicketArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let listed = snapshots_of(&client, &vm)?;
    let id = find_snapshot(&listed, &vm, &args.snapshot)?;
    let ops = args.map.then(|| vec![TicketOp::Read, TicketOp::Map]);
    let mut new = client.ticket(&api_path(&vm.id, &id, &args.disk), &CreateTicket { ttl: args.ttl.clone(), ops })?;
    let address = match &args.address {
        Some(address) => Some(address.trim_end_matches('/').to_owned()),
        // On the Unix socket, the service does not know the name that clients use for this host.
        None if new.url.is_none() => Some(own_address(config)?),
        None => None,
    };
    if let Some(address) = address {
        new.url = Some(format!("{address}{}", new.path));
    }
    if args.json {
        terminal::print_json(&new, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::notice(format_args!(
        "ticket {}, valid until {}",
        new.ticket.id,
        table::local_text(&new.ticket.expires_at)
    ));
    let mut lines = Lines::default();
    lines.add(new.url.unwrap_or_default());
    lines.print()?;
    Ok(ExitCode::SUCCESS)
}

/// The address of the service on this host, with the name that its certificate has: clients verify that name.
fn own_address(config: &Path) -> anyhow::Result<String> {
    let unknown = "the address of the service is unknown: name it with --address https://HOST:PORT";
    let Ok(config) = readable_config(config)? else { bail!("the config cannot be read, so {unknown}") };
    let name = tls::server_name(&config.api.certificate);
    let name = name.with_context(|| format!("api.tls.certificate has no usable name, so {unknown}"))?;
    Ok(format!("https://{name}:{}", config.api.port))
}
