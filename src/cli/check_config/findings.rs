//! What the checks found.

use crate::config::Fault;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStatus {
    /// No problem.
    Good,
    /// The service would run, but an operator should look at it.
    Doubtful,
    /// The service would not start, or not work.
    Bad,
}

/// The result of one check.
#[derive(Debug)]
pub struct Finding {
    /// What was checked, usually a key of the config.
    pub what: String,
    pub status: CheckStatus,
    pub found: String,
    /// What to do, if there is a problem.
    pub remedy: Option<String>,
}

/// The findings of all checks, in their order.
#[derive(Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub fn add(&mut self, what: &str, status: CheckStatus, found: impl ToString, remedy: Option<&str>) {
        let remedy = remedy.map(str::to_owned);
        self.0.push(Finding { what: what.to_owned(), status, found: found.to_string(), remedy });
    }

    pub fn good(&mut self, what: &str, found: impl ToString) {
        self.add(what, CheckStatus::Good, found, None);
    }

    pub fn doubtful(&mut self, what: &str, found: impl ToString, remedy: &str) {
        self.add(what, CheckStatus::Doubtful, found, Some(remedy));
    }

    pub fn bad(&mut self, what: &str, found: impl ToString, remedy: &str) {
        self.add(what, CheckStatus::Bad, found, Some(remedy));
    }

    pub fn fault(&mut self, fault: Fault) {
        self.bad(&fault.key, fault.found, &fault.remedy);
    }

    pub fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}
