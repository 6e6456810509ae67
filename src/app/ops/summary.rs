//! One line about the service, for service managers.

use std::collections::HashSet;
use std::sync::Arc;

use super::service::Ops;
use crate::app::Error;
use crate::app::inventory::Unsearched;
use crate::app::tasks::Service;
use crate::model::printable;

/// Characters of an error that the line quotes.
const MAX_PROBLEM: usize = 200;

impl Ops {
    /// What the service has and does, and what is wrong, in one line, such as `serving 34 snapshots of 12 VMs; 2 exports`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn summary(self: &Arc<Self>) -> Result<String, Error> {
        self.blocking(|ops| {
            let snapshots = ops.store.snapshots()?;
            let vms = snapshots.iter().map(|snapshot| &snapshot.vm).collect::<HashSet<_>>().len();
            let mut parts = vec![format!("serving {} of {}", count(snapshots.len(), "snapshot"), count(vms, "VM"))];
            let mut add = |number: usize, what: &str, state: &str| {
                if number > 0 {
                    parts.push(format!("{}{state}", count(number, what)));
                }
            };
            let (mut creations, mut exports, mut waiting) = (0, 0, 0);
            ops.admission.creations.each(|entry| *if entry.is_running { &mut creations } else { &mut waiting } += 1);
            ops.admission.exports.each(|entry| *if entry.is_running { &mut exports } else { &mut waiting } += 1);
            add(creations, "creation", "");
            add(exports, "export", "");
            add(waiting, "request", " waiting");
            let unavailable =
                ops.inventory.repositories().with_mounts().filter(|(_, mounted)| mounted.is_err()).count();
            match unavailable {
                0 => {}
                1 => parts.push("1 repository unavailable".to_owned()),
                more => parts.push(format!("{more} repositories unavailable")),
            }
            let owed = ops.observed.hooks.entries()?;
            let failed = owed.readable.iter().filter(|(_, hooks)| hooks.attempts > 0).count() + owed.unreadable.len();
            if failed > 0 {
                parts.push("post hooks failed: guests may be frozen".to_owned());
            }
            if ops.observed.database.is_damaged() {
                parts.push("the database is damaged".to_owned());
            }
            if *ops.inventory.unsearched() != Unsearched::Nothing {
                parts.push("the database is being rebuilt".to_owned());
            }
            Ok(parts.join("; "))
        })
        .await
    }

    /// What of the last reload has no effect, each in one line.
    pub fn load_problems(&self) -> Vec<String> {
        let (tls, config) = (self.tls.status(), self.config.status());
        let tls = tls.problem.map(|problem| format!("certificates not loaded: {}", first_line(&problem)));
        let refused = config.problem.map(|problem| format!("config not loaded: {}", first_line(&problem)));
        let keys = Some(config.needs_restart.join(", ")).filter(|keys| !keys.is_empty());
        [tls, refused, keys.map(|keys| format!("needs a restart: {keys}"))].into_iter().flatten().collect()
    }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// The first line of an error, so that no text of it can be taken for another message.
fn first_line(problem: &str) -> String {
    let mut lines = problem.lines();
    let first: String = lines.next().unwrap_or_default().chars().take(MAX_PROBLEM).collect();
    let more = match lines.count() {
        0 => String::new(),
        more => format!(" (and {})", count(more, "other")),
    };
    format!("{}{more}", printable(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_short_line() {
        assert_eq!(first_line("a: b\nc: d\ne: f"), "a: b (and 2 others)");
        assert_eq!(first_line("a\u{1b}b\nMAINPID=1"), "a\\u{1b}b (and 1 other)");
        assert_eq!(first_line(&"x".repeat(500)).len(), MAX_PROBLEM);
        assert_eq!((count(0, "VM"), count(1, "VM"), count(2, "VM")), ("0 VMs".into(), "1 VM".into(), "2 VMs".into()));
    }
}
