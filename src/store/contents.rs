//! All that the database contains, read and decoded. This finds damaged pages and records, and tells two states of the
//! database apart.

use std::hash::{DefaultHasher, Hasher};

use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, TableError, Value};

use super::{
    SNAPSHOTS, SNAPSHOTS_OF_VMS, StoreError, definition, events, pending_hooks, proof, record, retention,
    revoked_log_ins, schema, sessions, tickets,
};

/// What a state of the database contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Over all entries of all tables. It is not stored, and not made against an adversary.
    hash: u64,
    pub unreadable: Unreadable,
}

/// Records that this version cannot decode, although their pages are whole. They are no damage: another version may have
/// written them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    pub count: usize,
    /// Why the first of them cannot be read; empty if there is none.
    pub first: String,
}

impl Unreadable {
    fn add(&mut self, error: &StoreError) {
        if self.count == 0 {
            self.first = error.to_string();
        }
        self.count += 1;
    }

    /// The problem, for operators. Nothing if all records can be read.
    pub fn problem(&self) -> Option<String> {
        match self.count {
            0 => None,
            1 => Some(self.first.clone()),
            count => Some(format!("{count} records cannot be read; the first: {}", self.first)),
        }
    }
}

/// Reads every entry of every table, and decodes every record. A table that does not exist yet has no entries.
///
/// # Errors
/// The first entry that cannot be read.
pub(super) fn read_all(transaction: &ReadTransaction) -> Result<Contents, StoreError> {
    let reader = &mut Reader { transaction, hasher: DefaultHasher::new(), unreadable: Unreadable::default() };
    reader.table(SNAPSHOTS, |id, bytes| record::decode(id, bytes).map(|_| ()))?;
    reader.table(SNAPSHOTS_OF_VMS, |_, _| Ok(()))?;
    reader.table(schema::COUNTERS, |_, _| Ok(()))?;
    reader.table(definition::DEFINITIONS, |id, bytes| definition::decode(id, bytes).map(|_| ()))?;
    reader.table(pending_hooks::TABLE, |_, _| Ok(()))?;
    reader.table(proof::PROVEN, |_, _| Ok(()))?;
    reader.table(proof::CHECKSUMS, |_, _| Ok(()))?;
    reader.table(retention::EXPIRIES, |_, _| Ok(()))?;
    reader.table(retention::LEASES, |_, _| Ok(()))?;
    reader.table(retention::IDEMPOTENCY_KEYS, |_, _| Ok(()))?;
    reader.table(sessions::RENEWABLE, |_, _| Ok(()))?;
    reader.table(revoked_log_ins::TABLE, |_, _| Ok(()))?;
    reader.table(sessions::REVOKED_BEFORE, |_, _| Ok(()))?;
    reader.table(tickets::TABLE, |_, _| Ok(()))?;
    reader.table(events::EVENTS, |_, _| Ok(()))?;
    reader.table(events::QUEUES, |_, _| Ok(()))?;
    reader.table(events::CONDITIONS, |_, _| Ok(()))?;
    Ok(Contents { hash: reader.hasher.finish(), unreadable: std::mem::take(&mut reader.unreadable) })
}

struct Reader<'a> {
    transaction: &'a ReadTransaction,
    hasher: DefaultHasher,
    unreadable: Unreadable,
}

impl Reader<'_> {
    fn table<K: Key + 'static, V: Value + 'static>(
        &mut self,
        table: TableDefinition<'_, K, V>,
        decode: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let table = match self.transaction.open_table(table) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            table => table?,
        };
        for entry in table.iter()? {
            let (key, value) = entry?;
            for bytes in [K::as_bytes(&key.value()).as_ref(), V::as_bytes(&value.value()).as_ref()] {
                self.hasher.write_usize(bytes.len());
                self.hasher.write(bytes);
            }
            if let Err(error) = decode(key.value(), value.value()) {
                self.unreadable.add(&error);
            }
        }
        // So that an entry cannot move to the next table unnoticed.
        self.hasher.write_u8(0xff);
        Ok(())
    }
}
