//! The sections of the config file. An empty text means "not set".

use serde::{Deserialize, Serialize};

use super::secret::mask_user;
use super::{
    access, api, audit, compare, confinement, export, hooks, jwt, log, login, manager, notifications, policy,
    repositories,
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub(super) db_file: String,
    pub(super) db_rebuild: bool,
    #[serde(serialize_with = "mask_user")]
    pub(super) ovm_endpoint: String,
    pub(super) log_file: String,
    pub(super) log: log::Keys,
    pub(super) audit: audit::Keys,
    pub(super) jwt: jwt::Keys,
    pub(super) login: login::Keys,
    pub(super) api: api::Keys,
    pub(super) access: access::Keys,
    pub(super) manager: manager::Keys,
    pub(super) repositories: repositories::Keys,
    pub(super) compare: compare::Keys,
    pub(super) policy: policy::Keys,
    pub(super) export: export::Keys,
    pub(super) hooks: hooks::Keys,
    pub(super) notifications: notifications::Keys,
    pub(super) metrics: Metrics,
    pub(super) confinement: confinement::Keys,
}

impl Default for File {
    fn default() -> Self {
        Self {
            db_file: "/etc/coriolis-ovm-exporter/exporter.db".to_owned(),
            db_rebuild: false,
            ovm_endpoint: String::new(),
            log_file: String::new(),
            log: log::Keys::default(),
            audit: audit::Keys::default(),
            jwt: jwt::Keys::default(),
            login: login::Keys::default(),
            api: api::Keys::default(),
            access: access::Keys::default(),
            manager: manager::Keys::default(),
            repositories: repositories::Keys::default(),
            compare: compare::Keys::default(),
            policy: policy::Keys::default(),
            export: export::Keys::default(),
            hooks: hooks::Keys::default(),
            notifications: notifications::Keys::default(),
            metrics: Metrics::default(),
            confinement: confinement::Keys::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) enabled: bool,
    pub(super) require_token: bool,
}
