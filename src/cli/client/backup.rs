//! `backup`: the next restore point of each VM.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use serde_json::json;

use super::args::{BackupArgs, ImageFormat};
use super::ask::{self, Found, FoundVm};
use super::connect::{connect, is_service};
use super::exit::{self, NotAsked, UsageError};
use super::profile::Profiles;
use super::signals::cancel_on_signal;
use super::{new_snapshot, progress, table};
use crate::api;
use crate::backup::point::{Format, PointVm};
use crate::backup::threads;
use crate::backup::{BackupDir, DiskEstimate, Features, Options, Outcome, Progress, Rate, VmBackup};
use crate::cli::terminal::{self, Lines};
use crate::client::{Cancel, NewSnapshot, Server};
use crate::config;

/// A VM and the service that has it.
struct Job<'a> {
    host: &'a Host,
    vm: PointVm,
    server: Server,
}

struct Host {
    server: Server,
    features: Features,
    vms: Vec<FoundVm>,
    options: Options,
}

/// What one VM came to.
enum Done {
    Point(Box<Outcome>),
    Estimate(Vec<DiskEstimate>),
}

struct Failure {
    /// A VM or a service.
    what: String,
    error: anyhow::Error,
}

pub fn run(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let cancel = Cancel::default();
    cancel_on_signal(&cancel)?;
    let profiles = Profiles::load()?;
    let (services, names): (Vec<&String>, Vec<&String>) =
        args.targets.iter().partition(|target| is_service(target, &profiles));
    if services.is_empty() {
        return Err(UsageError("name a service, such as https://host:5544".to_owned()).into());
    }
    if args.all != names.is_empty() {
        return Err(UsageError("name the VMs to back up, or give --all".to_owned()).into());
    }
    if !args.exclude.is_empty() && !args.all {
        return Err(
            UsageError("--exclude is for --all; leave out the VMs that should not be backed up".to_owned()).into()
        );
    }
    if services.len() > 1 && std::env::var_os("EXPORTER_TOKEN").is_some_and(|token| !token.is_empty()) {
        let problem = "EXPORTER_TOKEN is the token of one service; use profiles, or run the command login for each";
        return Err(UsageError(problem.to_owned()).into());
    }
    let rate = args.bandwidth.as_deref().map(|text| {
        let problem = || UsageError(format!("--bandwidth {text:?}: expected bytes a second, such as 50MiB"));
        config::parse_size(text).filter(|rate| *rate > 0).ok_or_else(problem)
    });
    let rate = rate.transpose()?;
    let request = request(args)?;
    let servers: Vec<Server> = services
        .iter()
        .map(|service| connect(service, &args.server, &profiles, &cancel))
        .collect::<anyhow::Result<_>>()?;
    check_distinct(&servers)?;
    let directory = BackupDir::open_or_create(&args.to)?;

    let (mut failures, mut hosts) = (Vec::new(), Vec::new());
    for (server, found) in servers.iter().zip(ask::all(&servers)) {
        match found.and_then(|found| Host::new(server, found, args, &request, rate)) {
            Ok(host) => hosts.push(host),
            Err(error) => failures.push(Failure { what: server.to_string(), error }),
        }
    }
    let jobs = choose(&hosts, args, &names, &mut failures);
    let progress = progress::of(&args.output, progress::Work::Transfer);
    let (done, failed) = work(jobs, args, &directory, &*progress);
    drop(progress);
    failures.extend(failed);
    report(args, &done, &failures)?;
    let errors: Vec<anyhow::Error> = failures.into_iter().map(|failure| failure.error).collect();
    Ok(exit::of_several(done.len(), &errors))
}

impl Host {
    fn new(
        server: &Server,
        Found { features, vms }: Found,
        args: &BackupArgs,
        request: &NewSnapshot,
        rate: Option<u64>,
    ) -> anyhow::Result<Self> {
        if args.digests && !features.content_digest {
            let problem = "the service does not support --digests; leave it out";
            return Err(UsageError(problem.to_owned()).into());
        }
        let options = Options {
            connections: args.connections.clamp(1, 64),
            digests: args.digests,
            rate: Rate::new(rate),
            request: new_snapshot::supported(request, &features)?,
            format: args.format.map(Format::from),
        };
        Ok(Self { server: server.clone(), features, vms, options })
    }
}

/// A host of two services would be two pools at once.
fn check_distinct(servers: &[Server]) -> Result<(), UsageError> {
    let mut pools = HashMap::new();
    for (number, server) in servers.iter().enumerate() {
        for host in server.hosts() {
            let shown = host.address.to_string();
            if pools.insert(shown.clone(), number).is_some_and(|other| other != number) {
                return Err(UsageError(format!(
                    "{shown} is named twice; name each service once, and each host in one pool"
                )));
            }
        }
    }
    Ok(())
}

fn request(args: &BackupArgs) -> Result<NewSnapshot, UsageError> {
    Ok(NewSnapshot {
        disks: args.disks.clone(),
        exclude_disks: args.exclude_disks.clone(),
        ttl: args.ttl.clone(),
        labels: new_snapshot::labels(&args.labels)?,
        description: args.description.clone(),
        quiesce: args.quiesce.map(new_snapshot::quiesce),
    })
}

/// The VMs to back up. A VM that several services have is backed up from the first. `failures` has the services that
/// could not be asked.
fn choose<'a>(hosts: &'a [Host], args: &BackupArgs, names: &[&String], failures: &mut Vec<Failure>) -> Vec<Job<'a>> {
    let is_called =
        |FoundVm { vm, .. }: &FoundVm, name: &str| vm.name == name || vm.uuid == name || vm.friendly_name == name;
    let (mut jobs, mut taken) = (Vec::new(), HashSet::new());
    let not_asked = NotAsked::of(failures.iter().map(|Failure { what, error }| (what.as_str(), exit::status(error))));
    // A service on which a snapshot is possible comes before the others.
    let of_hosts = |host: &'a Host| host.vms.iter().map(move |vm| (host, vm));
    let mut all: Vec<(&Host, &FoundVm)> = hosts.iter().flat_map(of_hosts).collect();
    all.sort_by_key(|(_, found)| !found.vm.snapshot_compatible);
    let all = || all.iter().copied();
    for name in &args.exclude {
        if !all().any(|(_, vm)| is_called(vm, name)) {
            let which = if not_asked.is_some() { "no service that answered" } else { "no service" };
            terminal::notice(format_args!("--exclude {name}: {which} has a VM of this name"));
        }
    }
    let mut add = |host: &'a Host, FoundVm { vm, host: own }: &'a FoundVm, failures: &mut Vec<Failure>| {
        if !taken.insert(vm.name.as_str()) {
            return;
        }
        if vm.snapshot_compatible {
            let vm = PointVm { id: vm.name.clone(), name: vm.friendly_name.clone(), uuid: vm.uuid.clone() };
            jobs.push(Job { host, vm, server: host.server.beginning_at(*own) });
        } else {
            let reason = vm.reason.clone().unwrap_or_else(|| "a snapshot of it is not possible".to_owned());
            let what = if vm.friendly_name.is_empty() { &vm.name } else { &vm.friendly_name };
            failures.push(Failure { what: what.clone(), error: anyhow!(reason) });
        }
    };
    if args.all {
        for (host, vm) in all() {
            if !args.exclude.iter().any(|name| is_called(vm, name)) {
                add(host, vm, failures);
            }
        }
        return jobs;
    }
    for name in names {
        let found: Vec<_> = all().filter(|(_, vm)| is_called(vm, name)).collect();
        let ids: HashSet<&str> = found.iter().map(|(_, it)| it.vm.name.as_str()).collect();
        match found.as_slice() {
            [] => {
                let error = match &not_asked {
                    Some(not_asked) => not_asked.clone().into(),
                    None => no_vm(hosts),
                };
                failures.push(Failure { what: (*name).clone(), error });
            }
            _ if ids.len() > 1 => {
                let error = anyhow!("several VMs have this name; name one by its id");
                failures.push(Failure { what: (*name).clone(), error });
            }
            [(host, vm), ..] => add(host, vm, failures),
        }
    }
    jobs
}

fn no_vm(hosts: &[Host]) -> anyhow::Error {
    let address = hosts.first().map(|host| host.server.to_string()).unwrap_or_default();
    let of_one = if hosts.len() > 1 { " those of one" } else { " them" };
    anyhow!("no service has a VM of this name; the command vms --server {address} lists{of_one}")
}

/// Works on several VMs at a time.
fn work(
    jobs: Vec<Job<'_>>,
    args: &BackupArgs,
    directory: &BackupDir,
    progress: &dyn Progress,
) -> (Vec<(PointVm, Done)>, Vec<Failure>) {
    let results = threads::map("job", args.jobs, jobs, |Job { host, vm, server }| {
        let Host { features, options, .. } = host;
        let backup = VmBackup { server: &server, features, directory, vm: vm.clone(), options, progress };
        let result = if args.dry_run {
            backup.estimate().map(Done::Estimate)
        } else {
            backup.run().map(|outcome| Done::Point(Box::new(outcome)))
        };
        match result {
            Ok(done) => Ok((vm, done)),
            Err(error) => Err(Failure { what: vm.name, error: error.into() }),
        }
    });
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(result) => done.push(result),
            Err(failure) => failed.push(failure),
        }
    }
    done.sort_by(|(a, _): &(PointVm, Done), (b, _)| a.name.cmp(&b.name));
    (done, failed)
}

fn report(args: &BackupArgs, done: &[(PointVm, Done)], failures: &[Failure]) -> anyhow::Result<()> {
    if args.output.json {
        let vms: Vec<_> = done.iter().map(|(vm, done)| document(vm, done)).collect();
        let failed = failures.iter().map(|failure| {
            json!({"what": failure.what, "error": format!("{:#}", failure.error), "status": exit::status(&failure.error)})
        });
        let document = json!({"vms": vms, "failed": failed.collect::<Vec<_>>()});
        terminal::print_json(&document, true).context("standard output")?;
    } else if !args.output.quiet {
        let mut lines = Lines::default();
        done.iter().for_each(|(vm, done)| lines.add(line(vm, done)));
        lines.print().context("standard output")?;
    }
    for Failure { what, error } in failures {
        terminal::notice(format_args!("{what}: failed: {error:#}"));
    }
    Ok(())
}

fn line(vm: &PointVm, done: &Done) -> String {
    let name = &vm.name;
    match done {
        Done::Estimate(disks) => {
            let data = disks.iter().map(|disk| disk.data_bytes).sum();
            let zeros = disks.iter().map(|disk| disk.zero_bytes).sum();
            let mode = if disks.iter().any(|disk| disk.mode == api::Mode::Full) { "full" } else { "incremental" };
            format!("{name}: {mode}: {} to transfer, {} became zeros", table::bytes(data), table::bytes(zeros))
        }
        Done::Point(outcome) => {
            let Outcome { point, transferred_bytes, duration, was_resumed } = &**outcome;
            format!(
                "{name}: {} point {}, {}: {} transferred in {:.1} s{}",
                if point.is_full() { "full" } else { "incremental" },
                point.id,
                point.consistency,
                table::bytes(*transferred_bytes),
                duration.as_secs_f64(),
                if *was_resumed { ", resumed" } else { "" }
            )
        }
    }
}

fn document(vm: &PointVm, done: &Done) -> serde_json::Value {
    match done {
        Done::Estimate(disks) => json!({"vm": vm, "disks": disks}),
        Done::Point(outcome) => {
            let Outcome { point, transferred_bytes, duration, was_resumed } = &**outcome;
            json!({
                "vm": vm, "point": point.id, "snapshot_id": point.snapshot_id, "is_full": point.is_full(),
                "consistency": point.consistency, "created_at": point.created_at, "resumed": was_resumed,
                "transferred_bytes": transferred_bytes, "seconds": duration.as_secs_f64(),
            })
        }
    }
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Raw => Self::Raw,
            ImageFormat::Qcow2 => Self::Qcow2,
        }
    }
}
