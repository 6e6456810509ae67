//! `check-config`: the findings as a table for people.

use super::terminal::Lines;
use crate::app::ops::{CheckStatus, Finding};
use crate::model::printable;

/// The findings, a line each; below a line that is not good, what to do.
pub fn table(findings: &[Finding]) -> Lines {
    let width = findings.iter().map(|finding| printable(&finding.what).chars().count()).max().unwrap_or_default();
    let mut table = Lines::default();
    for Finding { what, status, found, remedy } in findings {
        let status = match status {
            CheckStatus::Good => "ok",
            CheckStatus::Doubtful => "warn",
            CheckStatus::Bad => "FAIL",
        };
        table.add(format_args!("{status:4}  {:width$}  {found}", printable(what)));
        if let Some(remedy) = remedy {
            table.add(format_args!("{:4}  {:width$}  -> {remedy}", "", ""));
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (bad, doubtful) = (count(CheckStatus::Bad), count(CheckStatus::Doubtful));
    table.add("");
    table.add(match (bad, doubtful) {
        (0, 0) => "All is as it should be.".to_owned(),
        (0, _) => format!("The service would run; warnings: {doubtful}."),
        _ => format!("The service would not do its work; failures: {bad}, warnings: {doubtful}."),
    });
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_that_is_not_good_has_its_remedy_below() {
        let finding = |what: &str, status, remedy: Option<&str>| Finding {
            what: what.to_owned(),
            status,
            found: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [finding("db_file", CheckStatus::Good, None), finding("log", CheckStatus::Bad, Some("mend it"))];
        let expected = "ok    db_file  found\n\
                        FAIL  log      found\n\
                        \u{20}              -> mend it\n\n\
                        The service would not do its work; failures: 1, warnings: 0.\n";
        assert_eq!(table(&findings).as_str(), expected);
        assert!(table(&findings[..1]).as_str().ends_with("All is as it should be.\n"));
    }
}
