//! Schema 8: log-ins that can be renewed, and revoked tokens.

use redb::{Error, TableDefinition, WriteTransaction};

/// Id of the log-in → its user, its end, and the hash of its refresh token (postcard).
const RENEWABLE_LOG_INS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("renewable_log_ins");
/// Id of the log-in → its user, and when its last token expires, seconds since 1970.
const REVOKED_LOG_INS: TableDefinition<'_, u128, (&str, u64)> = TableDefinition::new("revoked_log_ins");
/// User → milliseconds since 1970: tokens that were issued at or before then are revoked. The empty name stands for all
/// users.
const REVOKED_BEFORE: TableDefinition<'_, &str, u64> = TableDefinition::new("revoked_before");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(RENEWABLE_LOG_INS)?;
    transaction.open_table(REVOKED_LOG_INS)?;
    transaction.open_table(REVOKED_BEFORE)?;
    Ok(())
}
