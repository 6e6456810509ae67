//! The confinement: the service gives up what it does not need, so that an attacker who controls it through a bug can do
//! no more than it can.
//!
//! Hooks are not confined: a [launcher](crate::hooks::Launcher), started before, runs them.

mod reach;
mod rules;

use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api;
use crate::config::Config;
use crate::store;
use crate::sys::call_filter;
use crate::sys::capabilities::{self, Keep};
use crate::sys::file_access::{self, Unrestricted};

pub use reach::out_of_reach;
pub(crate) use reach::reaches_repository;

/// Ports below this one are for root.
const FIRST_FREE_PORT: u16 = 1024;

/// What is restricted so far, and why the rest is not.
pub struct Confinement {
    is_on: bool,
    state: Mutex<api::Confinement>,
}

impl Confinement {
    /// Nothing is restricted, for this reason.
    pub fn off(reason: impl Into<String>) -> Arc<Self> {
        Self::new(false, api::Confinement { problems: vec![reason.into()], ..api::Confinement::default() })
    }

    /// Drops capabilities, and restricts the access to files. The process must have one thread, because the kernel
    /// restricts the calling thread and those that it starts later.
    pub fn start(config: &Config) -> Arc<Self> {
        let mut found = api::Confinement::default();
        match restrict_files(config) {
            Ok(weaknesses) => {
                found.files = true;
                found.problems.extend(weaknesses);
            }
            Err(reason) => found.problems.push(format!("access to files is not restricted: {reason}")),
        }
        match capabilities::drop_others(keep(config)) {
            Ok(()) => found.capabilities = true,
            Err(reason) => found.problems.push(format!("capabilities are not dropped: {reason}")),
        }
        Self::new(true, found)
    }

    fn new(is_on: bool, found: api::Confinement) -> Arc<Self> {
        let api::Confinement { capabilities, files, problems, .. } = &found;
        tracing::info!(capabilities, files, "confinement");
        for problem in problems {
            tracing::warn!(problem, "confinement");
        }
        Arc::new(Self { is_on, state: Mutex::new(found) })
    }

    /// Restricts the system calls of all threads. The steps that need others must be done.
    pub fn restrict_calls(&self) {
        if !self.is_on {
            return;
        }
        let mut found = self.state();
        match call_filter::restrict() {
            Ok(()) => found.system_calls = true,
            Err(reason) => {
                let problem = format!("system calls are not restricted: {reason}");
                tracing::warn!(problem, "confinement");
                found.problems.push(problem);
            }
        }
    }

    pub fn describe(&self) -> api::Confinement {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, api::Confinement> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The paths that the config names, with their keys.
pub fn named_paths(config: &Config) -> Vec<(&'static str, PathBuf)> {
    rules::named(config).into_iter().map(|(key, path, _)| (key, path)).collect()
}

/// What the service would restrict with this config on this kernel, without restricting anything.
pub fn preview(config: &Config) -> api::Confinement {
    let mut found = api::Confinement { capabilities: true, system_calls: true, ..api::Confinement::default() };
    match rules::repository_folders(config) {
        Ok(_) if !file_access::is_supported() => {
            found.problems.push(format!("access to files is not restricted: {}", Unrestricted::Unsupported));
        }
        Ok(folders) => {
            found.files = true;
            found.problems.extend(rules::weaknesses(config, &folders, &rules::all(config, &folders)));
        }
        Err(reason) => found.problems.push(format!("access to files is not restricted: {reason}")),
    }
    if !call_filter::is_supported() {
        found.system_calls = false;
        found.problems.push("system calls are not restricted: the kernel has no seccomp filters".to_owned());
    }
    found
}

/// Restricts the access to files. Returns what makes that weaker, or why it failed.
fn restrict_files(config: &Config) -> Result<Vec<String>, String> {
    let folders = rules::repository_folders(config)?;
    // It is the only place beside the database where the service may create files. A copy reports what is wrong.
    let _ = store::make_copies_folder(&config.db_file);
    let rules = rules::all(config, &folders);
    file_access::restrict(&rules, config.api.port).map_err(|reason| reason.to_string())?;
    let weaknesses = rules::weaknesses(config, &folders, &rules);
    reach::set(rules, config.hooks.directory.as_deref().map(Path::to_owned));
    Ok(weaknesses)
}

fn keep(config: &Config) -> Keep {
    let socket = config.api.socket.as_ref();
    Keep {
        low_port: config.api.port < FIRST_FREE_PORT,
        change_group: socket.is_some_and(|socket| socket.group.is_some()),
    }
}
