//! Which blocks only one owner references: what the deletion of that owner's files would free.

use std::collections::BTreeMap;

/// A run of blocks that a file references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Device address of the first byte.
    pub start: u64,
    /// Device address after the last byte.
    pub end: u64,
    /// A number below the count of owners.
    pub owner: usize,
    /// Whether another reference certainly exists, by any file.
    pub shared: bool,
}

/// For each owner, the bytes that no other owner references.
///
/// If a run is certainly shared but `references` has only one reference to it, an unrelated file shares it. The run then
/// counts for no owner.
pub fn exclusive(references: &[Reference], owners: usize) -> Vec<u64> {
    let mut bytes = vec![0; owners];
    // Address, index of the reference, and whether the reference starts there.
    let mut edges: Vec<(u64, usize, bool)> = Vec::with_capacity(references.len() * 2);
    for (index, reference) in references.iter().enumerate().filter(|(_, one)| one.start < one.end) {
        edges.push((reference.start, index, true));
        edges.push((reference.end, index, false));
    }
    edges.sort_unstable();
    let mut active: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut count, mut certainly_shared) = (0_usize, 0_usize);
    let mut at = 0;
    for (edge, index, is_start) in edges {
        if let (1, Some(owner)) = (active.len(), active.keys().next())
            && (count > 1 || certainly_shared == 0)
        {
            bytes[*owner] += edge - at;
        }
        at = edge;
        let Reference { owner, shared, .. } = references[index];
        if is_start {
            *active.entry(owner).or_default() += 1;
            count += 1;
            certainly_shared += usize::from(shared);
        } else {
            let of_owner = active.entry(owner).or_insert(1);
            *of_owner -= 1;
            if *of_owner == 0 {
                active.remove(&owner);
            }
            count -= 1;
            certainly_shared -= usize::from(shared);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reference(start: u64, end: u64, owner: usize, shared: bool) -> Reference {
        Reference { start, end, owner, shared }
    }

    #[test]
    fn a_run_with_one_owner_is_exclusive() {
        let all = [reference(0, 100, 0, true), reference(40, 60, 1, true), reference(200, 250, 1, false)];
        assert_eq!(exclusive(&all, 3), [0, 50, 0], "a run shared with an unknown file is not exclusive");
        let all = all.map(|one| Reference { shared: false, ..one });
        assert_eq!(exclusive(&all, 3), [80, 50, 0]);
        // One owner references the run twice, and both references are known.
        let twice = [reference(0, 10, 0, true), reference(0, 10, 0, true)];
        assert_eq!(exclusive(&twice, 1), [10]);
        assert_eq!(exclusive(&[], 2), [0, 0]);
    }

    proptest! {
        #[test]
        fn the_result_equals_a_count_byte_by_byte(runs in prop::collection::vec((0_u64..40, 1_u64..12, 0_usize..4, any::<bool>()), 0..14)) {
            let references: Vec<_> =
                runs.iter().map(|(start, length, owner, shared)| reference(*start, start + length, *owner, *shared)).collect();
            let mut expected = vec![0; 4];
            for byte in 0..60 {
                let here: Vec<_> = references.iter().filter(|one| (one.start..one.end).contains(&byte)).collect();
                if let [first, rest @ ..] = here.as_slice()
                    && rest.iter().all(|one| one.owner == first.owner)
                    && (!rest.is_empty() || !first.shared)
                {
                    expected[first.owner] += 1;
                }
            }
            prop_assert_eq!(exclusive(&references, 4), expected);
        }
    }
}
