//! Schema 10: snapshots of one VM may have the same sequence.

use redb::{Error, ReadableTable, TableDefinition, WriteTransaction};

/// (VM, sequence) → snapshot id.
const OLD: TableDefinition<'_, (&str, u64), u128> = TableDefinition::new("snapshots_by_vm");
/// (VM, sequence, snapshot id).
const NEW: TableDefinition<'_, (&str, u64, u128), ()> = TableDefinition::new("snapshots_of_vms");

pub fn run(transaction: &WriteTransaction) -> Result<(), Error> {
    {
        let old = transaction.open_table(OLD)?;
        let mut new = transaction.open_table(NEW)?;
        for entry in old.iter()? {
            let (place, id) = entry?;
            let (vm, sequence) = place.value();
            new.insert((vm, sequence, id.value()), ())?;
        }
    }
    transaction.delete_table(OLD)?;
    Ok(())
}
