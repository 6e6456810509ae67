//! The OpenAPI document. Its paths come from the attributes and comments of the handlers, its schemas from the types of
//! `api`; [`complete`] adds what all operations have in common. `docs/openapi.json` is a copy of it, which a test compares.

mod complete;
mod errors;
mod links;
pub(super) mod parameters;
mod reference;
mod schemas;

use serde_json::Value;
use utoipa::OpenApi;

use super::authorization::Access;
use super::{
    disk_handlers, documentation, handlers, notification_handlers, session_handlers, snapshot_handlers, ticket,
};
use crate::api;

/// A route of the table: its path, its method, and who may use it.
pub(super) type Route = (&'static str, &'static str, Access);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "coriolis-ovm-exporter",
        description = "Snapshots of VM disks, the bytes that changed between two of them, and those bytes.\n\n\
            Each path works with and without a trailing slash. JSON answers are `application/json` and end with a newline. \
            Clients must ignore fields that they do not know. Sizes, offsets and lengths are in bytes. Times are RFC 3339 \
            in UTC. A Boolean parameter is one of `1 t T TRUE true True 0 f F FALSE false False`. An empty value of another \
            parameter counts as none, except of `label`. Unknown parameters are ignored, except by `POST /adopt`. A \
            parameter that is given twice, or that looks like a misspelling of one of the operation's, gets 400. Only \
            `label` may be given several times.\n\n\
            On the host itself, operators can use the same paths over a Unix socket, in plain HTTP and without a token.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "Log-ins", description = "Tokens: how to get, renew and revoke them."),
        (name = "Inventory", description = "Repositories, VMs and their disks."),
        (name = "Snapshots", description = "To create, compare, keep and delete snapshots."),
        (name = "Disks", description = "The bytes, chunks and checksums of a snapshot's disks."),
        (name = "Tickets", description = "URLs with which tools read a disk without a token."),
        (name = "Service", description = "The service itself: health, status, limits, database."),
    ),
    paths(
        session_handlers::login,
        session_handlers::refresh,
        session_handlers::logout,
        session_handlers::certificate,
        session_handlers::revoke,
        handlers::capabilities,
        handlers::adopt,
        handlers::database,
        notification_handlers::test,
        handlers::repositories,
        handlers::status,
        snapshot_handlers::create_snapshots,
        snapshot_handlers::vms,
        snapshot_handlers::vm,
        snapshot_handlers::snapshots,
        snapshot_handlers::create_snapshot,
        snapshot_handlers::delete_all_snapshots,
        snapshot_handlers::snapshot,
        snapshot_handlers::delete_snapshot,
        snapshot_handlers::take_lease,
        snapshot_handlers::end_lease,
        disk_handlers::disk,
        disk_handlers::chunks,
        disk_handlers::checksum,
        ticket::list,
        ticket::create,
        ticket::end,
        handlers::healthz,
        handlers::readyz,
        handlers::metrics,
        documentation::document,
        documentation::page,
        documentation::file,
    ),
    components(schemas(api::Error)),
)]
struct Document;

/// The document, as JSON.
pub(super) fn document(routes: &[Route]) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(Document::openapi())?;
    complete::complete(&mut document, routes);
    Ok(document)
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use utoipa::PartialSchema;

    use super::*;

    fn read_example<T: PartialSchema + DeserializeOwned>() {
        let schema = serde_json::to_value(T::schema()).unwrap();
        let example = schema.get("example").unwrap_or_else(|| panic!("{schema} has no example"));
        if let Err(error) = serde_json::from_value::<T>(example.clone()) {
            panic!("{error}: {example}");
        }
    }

    #[test]
    fn examples_are_values_of_their_types() {
        read_example::<api::Login>();
        read_example::<api::Refresh>();
        read_example::<api::Token>();
        read_example::<api::CertificateUser>();
        read_example::<api::Revoke>();
        read_example::<api::Revoked>();
        read_example::<api::Vm>();
        read_example::<api::CreateSnapshot>();
        read_example::<api::CreateSnapshots>();
        read_example::<api::Snapshot>();
        read_example::<api::TakeLease>();
        read_example::<api::Lease>();
        read_example::<api::ChunkPage>();
        read_example::<api::Checksum>();
        read_example::<api::CreateTicket>();
        read_example::<api::Ticket>();
        read_example::<api::Adoption>();
        read_example::<api::TestNotification>();
        read_example::<api::Health>();
        read_example::<api::Error>();
    }
}
