//! All that the database contains, read and decoded. This finds damaged pages and records, and tells two states of the
//! database apart.

use std::hash::{DefaultHasher, Hasher};

use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, TableError, Value};

use super::{
    SNAPSHOTS, SNAPSHOTS_BY_VM, StoreError, definition, pending_hooks, proof, record, retention, schema, sessions,
};

/// A hash of all entries of all tables. It is not stored, and not made against an adversary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contents(u64);

/// Reads every entry of every table, and decodes every record. A table that does not exist yet has no entries.
///
/// # Errors
/// The first entry that cannot be read or decoded.
pub(super) fn read_all(transaction: &ReadTransaction) -> Result<Contents, StoreError> {
    let hasher = &mut DefaultHasher::new();
    each(transaction, hasher, SNAPSHOTS, |id, bytes| record::decode(id, bytes).map(|_| ()))?;
    each(transaction, hasher, SNAPSHOTS_BY_VM, |_, _| Ok(()))?;
    each(transaction, hasher, schema::COUNTERS, |_, _| Ok(()))?;
    each(transaction, hasher, definition::DEFINITIONS, |id, bytes| definition::decode(id, bytes).map(|_| ()))?;
    each(transaction, hasher, pending_hooks::TABLE, |_, _| Ok(()))?;
    each(transaction, hasher, proof::PROVEN, |_, _| Ok(()))?;
    each(transaction, hasher, proof::CHECKSUMS, |_, _| Ok(()))?;
    each(transaction, hasher, retention::EXPIRIES, |_, _| Ok(()))?;
    each(transaction, hasher, retention::LEASES, |_, _| Ok(()))?;
    each(transaction, hasher, retention::IDEMPOTENCY_KEYS, |_, _| Ok(()))?;
    each(transaction, hasher, sessions::RENEWABLE, |_, _| Ok(()))?;
    each(transaction, hasher, sessions::REVOKED_LOG_INS, |_, _| Ok(()))?;
    each(transaction, hasher, sessions::REVOKED_BEFORE, |_, _| Ok(()))?;
    Ok(Contents(hasher.finish()))
}

fn each<K: Key + 'static, V: Value + 'static>(
    transaction: &ReadTransaction,
    hasher: &mut DefaultHasher,
    table: TableDefinition<'_, K, V>,
    decode: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let table = match transaction.open_table(table) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    for entry in table.iter()? {
        let (key, value) = entry?;
        for bytes in [K::as_bytes(&key.value()).as_ref(), V::as_bytes(&value.value()).as_ref()] {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        }
        decode(key.value(), value.value())?;
    }
    // So that an entry cannot move to the next table unnoticed.
    hasher.write_u8(0xff);
    Ok(())
}
