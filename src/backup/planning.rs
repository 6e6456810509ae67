//! Finds out what to transfer of a disk.

use std::ops::Range;

use super::blocks::{self, BLOCK, Blocks};
use super::error::Result;
use super::features::Features;
use super::leases::Leases;
use super::plan::Plan;
use super::point::{PointDisk, StoredPoint};
use super::server_blocks::for_each_part;
use crate::api::Mode;
use crate::client::{Client, ClientError, Comparison, Order};

/// Which changes of a disk are asked for.
pub struct Question<'a> {
    pub client: &'a Client,
    pub features: &'a Features,
    pub leases: &'a Leases,
    pub vm: &'a str,
    pub snapshot: &'a str,
    pub disk: &'a str,
    /// Of the disk in the API.
    pub path: &'a str,
    pub size: u64,
    /// The newest point with a disk of this name.
    pub base: Option<&'a StoredPoint>,
    /// The snapshot of that point is still on the server.
    pub base_is_there: bool,
}

/// What is to be done, and to which image.
pub struct Answer {
    pub plan: Plan,
    pub mode: Mode,
    /// Why not as usual.
    pub reason: Option<String>,
    /// The image begins as the base's disk.
    pub uses_base: bool,
}

/// # Errors
/// The service cannot tell.
pub fn plan(question: &Question<'_>) -> Result<Answer> {
    let Question { features, base, .. } = question;
    if features.is_original {
        return plan_with_original(question);
    }
    // Why the service cannot tell the changes since the base.
    let reason = match base.filter(|_| question.base_is_there) {
        None => "the service does not have the base".to_owned(),
        Some(base) => match by_comparison(question, Some(base)) {
            Ok(answer) if answer.mode == Mode::Incremental => return Ok(answer),
            Ok(answer) => answer.reason.unwrap_or_default(),
            Err(error) if error.code() == Some("base_lost") => "the service lost the base".to_owned(),
            Err(error) if error.code() == Some("base_unsettled") => "a defragmenter moves the base's blocks".to_owned(),
            Err(error) => return Err(error.into()),
        },
    };
    match base.and_then(|base| Some((base, base.point.disk(question.disk)?))) {
        Some((base, base_disk)) if features.block_checksums => by_checksums(question, base, base_disk, &reason),
        _ => Ok(by_comparison(question, None)?),
    }
}

fn by_comparison(question: &Question<'_>, base: Option<&StoredPoint>) -> Result<Answer, ClientError> {
    let mut plan = Plan::default();
    let base = base.map(|base| base.point.snapshot_id.as_str());
    let comparison = question.client.compare(question.path, base, &mut |range, is_zero| plan.push(range, is_zero))?;
    let Comparison { mode, reason } = comparison;
    Ok(Answer { plan, mode, reason, uses_base: mode == Mode::Incremental })
}

/// The service cannot compare with the base, but the bytes of the base are here: compare the checksums of blocks.
fn by_checksums(question: &Question<'_>, base: &StoredPoint, base_disk: &PointDisk, reason: &str) -> Result<Answer> {
    let Question { client, path, size, .. } = *question;
    let old = Blocks::open(&base.path(&base_disk.checksum.file), base_disk.size)?;
    let mut plan = Plan::default();
    for_each_part(client, path, size, &mut |range, digests| {
        question.leases.renew_if_due(client);
        let first = range.start / BLOCK;
        let end = first + digests.len() as u64;
        let old_digests = old.digests(first.min(old.count())..end.min(old.count()))?;
        for (block, digest) in (first..).zip(digests) {
            let bytes = block * BLOCK..((block + 1) * BLOCK).min(size);
            let zeros = blocks::digest_of_zeros(bytes.end - bytes.start);
            let is_equal = match old_digests.get((block - first) as usize) {
                // If one of the disks ends within this block, the checksums cannot be compared.
                Some(old_digest) => digest == *old_digest && old.range(block) == bytes,
                // The older disk ends before it: the image has zeros there.
                None => digest == zeros,
            };
            if !is_equal {
                plan.push(bytes, digest == zeros);
            }
        }
        Ok(())
    })?;
    let reason = Some(format!("{reason}; only blocks with other checksums are transferred"));
    Ok(Answer { plan, mode: Mode::Incremental, reason, uses_base: true })
}

/// The original exporter lists changed data, but no ranges that became zeros. A range that its full list omits is zeros.
fn plan_with_original(question: &Question<'_>) -> Result<Answer> {
    let Question { client, vm, snapshot, disk, size, base, base_is_there, .. } = question;
    let ranges_of = |base: Option<&str>| -> Result<Option<Vec<Range<u64>>>, ClientError> {
        let disks = client.compare_with_original(vm, snapshot, base)?;
        Ok(disks.into_iter().find(|(name, _)| name == disk).map(|(_, ranges)| ranges))
    };
    let missing = || ClientError::Protocol(format!("the service lists no disk {disk:?} in the snapshot {snapshot}"));
    let check = |ranges: Vec<Range<u64>>| -> Result<Vec<Range<u64>>, ClientError> {
        let mut order = Order::new(*size);
        // It lists whole clusters, also the one that the end of the disk cuts.
        let cut = |range: &Range<u64>| range.end.min(*size).saturating_sub(range.start);
        ranges.iter().map(|range| order.check(range.start, cut(range), disk)).collect()
    };
    let all = check(ranges_of(None)?.ok_or_else(missing)?)?;
    let base = base.filter(|base| *base_is_there && base.point.disk(disk).is_some_and(|disk| disk.size <= *size));
    let mut plan = Plan::default();
    let Some(base) = base else {
        all.into_iter().for_each(|range| plan.push(range, false));
        return Ok(Answer { plan, mode: Mode::Full, reason: None, uses_base: false });
    };
    let changed = check(ranges_of(Some(&base.point.snapshot_id))?.ok_or_else(missing)?)?;
    let mut ranges: Vec<(Range<u64>, bool)> = changed.into_iter().map(|range| (range, false)).collect();
    let mut at = 0;
    for range in all.into_iter().chain(std::iter::once(*size..*size)) {
        if range.start > at {
            ranges.push((at..range.start, true));
        }
        at = range.end;
    }
    ranges.sort_by_key(|(range, _)| range.start);
    if ranges.windows(2).any(|pair| pair[0].0.end > pair[1].0.start) {
        let problem = format!("{disk}: the service lists changes where it lists no data");
        return Err(ClientError::Protocol(problem).into());
    }
    ranges.into_iter().for_each(|(range, is_zero)| plan.push(range, is_zero));
    let mode = Mode::Incremental;
    Ok(Answer { plan, mode, reason: None, uses_base: true })
}
