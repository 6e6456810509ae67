//! The confinement: the service gives up what it does not need, so that an attacker who controls it through a bug can do
//! no more than it can.
//!
//! Hooks are not confined: a [launcher](crate::hooks::Launcher), started before, runs them.

mod rules;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api;
use crate::auth;
use crate::config::Config;
use crate::sys::call_filter;
use crate::sys::capabilities::{self, Keep};
use crate::sys::file_access::{self, Unrestricted};

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
        let found = api::Confinement { problems: vec![reason.into()], ..api::Confinement::default() };
        Arc::new(Self { is_on: false, state: Mutex::new(found) })
    }

    /// Drops capabilities, and restricts the access to files. The process must have one thread, because the kernel
    /// restricts the calling thread and those that it starts later. As nothing can be logged yet, [`Self::log`] follows.
    pub fn start(config: &Config) -> Arc<Self> {
        let mut found = api::Confinement::default();
        let folders = rules::repository_folders(config);
        create_files(config, folders.as_deref().unwrap_or_default());
        match folders {
            Ok(folders) => {
                let rules = rules::all(config, folders);
                found.problems.extend(rules::weaknesses(config, &rules));
                match file_access::restrict(&rules, config.api.port) {
                    Ok(()) => found.files = true,
                    Err(reason) => found.problems.push(format!("access to files is not restricted: {reason}")),
                }
            }
            Err(reason) => found.problems.push(format!("access to files is not restricted: {reason}")),
        }
        match capabilities::drop_others(keep(config)) {
            Ok(()) => found.capabilities = true,
            Err(reason) => found.problems.push(format!("capabilities are not dropped: {reason}")),
        }
        Arc::new(Self { is_on: true, state: Mutex::new(found) })
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

    /// Logs what [`Self::start`] or [`Self::off`] did.
    pub fn log(&self) {
        let api::Confinement { capabilities, files, problems, .. } = self.describe();
        tracing::info!(capabilities, files, "confinement");
        for problem in problems {
            tracing::warn!(problem, "confinement");
        }
    }

    pub fn describe(&self) -> api::Confinement {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, api::Confinement> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            found.problems.extend(rules::weaknesses(config, &rules::all(config, folders)));
        }
        Err(reason) => found.problems.push(format!("access to files is not restricted: {reason}")),
    }
    if !call_filter::is_supported() {
        found.system_calls = false;
        found.problems.push("system calls are not restricted: the kernel has no seccomp filters".to_owned());
    }
    found
}

fn keep(config: &Config) -> Keep {
    let socket = config.api.socket.as_ref();
    Keep {
        low_port: config.api.port < FIRST_FREE_PORT,
        change_group: socket.is_some_and(|socket| socket.group.is_some()),
    }
}

/// Creates the database file and the key of tokens, if they do not exist yet: the service may later write these files,
/// but not create others beside them, where its config and its hooks usually are. All errors are found again, and
/// reported, when the files are used.
fn create_files(config: &Config, repositories: &[PathBuf]) {
    let resolved = rules::resolved_in_folder(&config.db_file);
    // The start refuses that, or warns of it.
    if repositories.iter().any(|folder| resolved.starts_with(folder)) {
        return;
    }
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&config.db_file);
    // The lock is the database's own: no other service creates a key at the same time.
    if let Ok(file) = opened
        && file.try_lock().is_ok()
    {
        let _ = auth::key::find_or_make(config);
    }
}
