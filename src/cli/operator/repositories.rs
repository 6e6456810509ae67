//! `repositories`: where the disks are.

use std::path::Path;
use std::process::ExitCode;

use serde_json::value::RawValue;

use super::args::ListArgs;
use super::service::Service;
use crate::api::{Repository, Status};
use crate::cli::client::table::{self, Align, Table};
use crate::cli::terminal;

pub fn run(args: &ListArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    if args.json {
        terminal::print_json(&*client.get::<Box<RawValue>>("/repositories")?, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let repositories: Vec<Repository> = client.get("/repositories")?;
    if repositories.is_empty() {
        terminal::notice("the service knows no repository; see repositories.paths in its config");
    } else {
        table_of(&repositories).print()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table_of(repositories: &[Repository]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Text),
        ("ID", Align::Left),
        ("MOUNT POINT", Align::Text),
        ("TYPE", Align::Left),
        ("REFLINK", Align::Left),
        ("FREE", Align::Right),
        ("STATUS", Align::Text),
    ]);
    for it in repositories {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let status = match (it.status, it.reason.as_deref()) {
            (Status::Ok, None) => "ok".to_owned(),
            (Status::Ok, Some(reason)) => format!("ok, but {reason}"),
            (Status::Error, reason) => format!("error: {}", reason.unwrap_or("no reason is known")),
        };
        table.row(vec![
            it.alias.clone().unwrap_or_default(),
            it.id.clone(),
            or_dash(&it.mount_point),
            or_dash(&it.filesystem),
            if it.reflink { "yes" } else { "no" }.to_owned(),
            free_of_total(it.free_bytes, it.total_bytes),
            status,
        ]);
    }
    table.without_empty_columns()
}

/// The space of a repository.
pub fn free_of_total(free: Option<u64>, total: Option<u64>) -> String {
    match (free, total) {
        (Some(free), Some(total)) => format!("{} of {}", table::bytes(free), table::bytes(total)),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_a_row_with_its_state() {
        let repository = |id: &str, free: Option<u64>, status: Status, reason: Option<&str>| Repository {
            id: id.to_owned(),
            alias: None,
            mount_point: free.map(|_| "/OVS".to_owned()),
            filesystem: free.map(|_| "ocfs2".to_owned()),
            manager_uuid: None,
            version: None,
            reflink: free.is_some(),
            total_bytes: free.map(|_| 4 << 30),
            free_bytes: free,
            status,
            reason: reason.map(str::to_owned),
        };
        let repositories = [
            repository("a", Some(1 << 30), Status::Ok, None),
            repository("b", None, Status::Error, Some("nothing is mounted")),
        ];
        let expected = "\
ID  MOUNT POINT  TYPE   REFLINK                  FREE  STATUS
a   /OVS         ocfs2  yes      1.00 GiB of 4.00 GiB  ok
b   -            -      no                          -  error: nothing is mounted
";
        assert_eq!(table_of(&repositories).lines().as_str(), expected);
    }
}
