//! What the service opens before it confines itself: later it may create no file beside its database, where its config
//! and its hooks usually are.

use secrecy::SecretString;

use crate::app::inventory::Repositories;
use crate::app::ops::start_faults;
use crate::auth;
use crate::config::{Config, Fault};
use crate::store::{self, Store, StoreError};

/// The list of repositories, the database, and the key that signs tokens.
pub struct Opened {
    pub(super) repositories: Repositories,
    pub(super) store: Store,
    pub(super) key: SecretString,
}

impl Opened {
    /// Opens or creates the database and the key. This starts no thread.
    ///
    /// # Errors
    /// Every error is written for operators.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let repositories = Repositories::new(&config.repositories)?;
        let misplaced = start_faults::files_in_repositories(config, &repositories.found());
        for fault in &misplaced {
            tracing::warn!(key = fault.key, remedy = fault.remedy, "{}", fault.found);
        }
        if let Some(fault) = start_faults::key_in_repository(config, &misplaced) {
            return Err(fault.into());
        }
        let store = database(config)?;
        // The database is locked by now, so no other service can create a key at the same time.
        let key = auth::key::find_or_make(config).map_err(|error| start_faults::key(&error))?;
        Ok(Self { repositories, store, key })
    }
}

/// Opens the database. A damaged one is set aside first, if the config allows that.
fn database(config: &Config) -> Result<Store, Fault> {
    let path = &config.db_file;
    let store = match Store::open(path) {
        Err(StoreError::Damaged(_)) if config.db_rebuild => store::set_aside(path).and_then(|aside| {
            tracing::error!(damaged = %aside.display(), "the database is damaged; it has been set aside");
            Store::open(path)
        }),
        opened => opened,
    };
    store.map_err(|error| start_faults::database(path, &error))
}
