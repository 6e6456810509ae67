//! Asks services what they can do, and for their VMs.

use std::collections::HashMap;
use std::time::Duration;

use crate::api;
use crate::backup::{Features, threads};
use crate::cli::terminal;
use crate::client::{ClientError, Server};

/// Services that are asked at once.
const SERVICES_AT_ONCE: usize = 64;
/// Hosts of one pool that are asked at once.
const HOSTS_AT_ONCE: usize = 16;
/// How long all hosts of a pool are waited for, if one answers.
const HOST_TIMEOUT: Duration = Duration::from_secs(30);

/// What a service has.
pub struct Found {
    pub features: Features,
    pub vms: Vec<FoundVm>,
}

pub struct FoundVm {
    pub vm: api::Vm,
    /// The host at which its backup begins, if it is not the one that answers first.
    pub host: Option<usize>,
}

/// Asks all services at once.
pub fn all(servers: &[Server]) -> Vec<anyhow::Result<Found>> {
    threads::map("ask", SERVICES_AT_ONCE, servers.iter().collect(), |server: &Server| Ok(ask(server)?))
}

fn ask(server: &Server) -> Result<Found, ClientError> {
    let mut lists = if server.hosts().len() > 1 { of_hosts(server) } else { Vec::new() };
    let client = server.client()?;
    let features = Features::of(client.capabilities()?.as_ref());
    if lists.is_empty() {
        lists = vec![(None, client.vms()?)];
    }
    Ok(Found { features, vms: merge(lists) })
}

/// The lists of the hosts that answer, in the order of the hosts.
fn of_hosts(server: &Server) -> Vec<(Option<usize>, Vec<api::Vm>)> {
    let hosts = (0..server.hosts().len()).collect();
    let lists = threads::map("ask", HOSTS_AT_ONCE, hosts, |host| {
        let vms = server.client().and_then(|client| client.vms_of_host(host, HOST_TIMEOUT));
        vms.inspect_err(|error| terminal::notice(format_args!("{error}; VMs that only this host has are left out")))
            .ok()
    });
    (0..).zip(lists).filter_map(|(host, vms)| Some((Some(host), vms?))).collect()
}

/// Each VM once: as the host lists it on which the guest runs, or else the first one. A host that can make a snapshot of
/// it comes before one that cannot.
fn merge(lists: Vec<(Option<usize>, Vec<api::Vm>)>) -> Vec<FoundVm> {
    let (mut merged, mut places) = (Vec::<FoundVm>::new(), HashMap::new());
    for (host, vms) in lists {
        for vm in vms {
            let place = *places.entry(vm.name.clone()).or_insert(merged.len());
            match merged.get_mut(place) {
                None => merged.push(FoundVm { vm, host: host.filter(|host| *host > 0) }),
                Some(known) if rank(&vm) > rank(&known.vm) => *known = FoundVm { vm, host },
                Some(_) => {}
            }
        }
    }
    merged
}

/// How well a host can make a snapshot of a VM.
fn rank(vm: &api::Vm) -> (bool, bool) {
    (vm.snapshot_compatible, vm.runs_here == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, snapshot_compatible: bool, runs_here: Option<bool>) -> api::Vm {
        let document = serde_json::json!({"friendly_name": "", "name": name, "uuid": "", "disks": [], "snapshots": [],
            "snapshot_compatible": snapshot_compatible, "runs_here": runs_here});
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_vm_of_several_hosts_is_there_once_at_its_own() {
        let lists = vec![
            (Some(0), vec![vm("a", true, Some(false)), vm("b", true, None), vm("c", false, Some(true))]),
            (Some(1), vec![vm("d", true, Some(false)), vm("c", true, Some(false)), vm("b", true, None)]),
            (Some(2), vec![vm("c", true, Some(true)), vm("a", true, Some(true))]),
        ];
        let merged: Vec<_> = merge(lists).into_iter().map(|found| (found.vm.name, found.host)).collect();
        let expected = [("a", Some(2)), ("b", None), ("c", Some(2)), ("d", Some(1))];
        assert_eq!(merged, expected.map(|(name, host)| (name.to_owned(), host)));
    }
}
