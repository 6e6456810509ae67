//! The findings as a table.

use super::findings::{CheckStatus, Finding};
use crate::cli::terminal::Lines;
use crate::model::printable;

/// One line for each finding, followed by its remedy.
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
        (0, 0) => "No problems found.".to_owned(),
        (0, _) => format!("The service would work; warnings: {doubtful}."),
        _ => format!("The service would not work; failures: {bad}, warnings: {doubtful}."),
    });
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_follows_its_finding() {
        let finding = |what: &str, status, remedy: Option<&str>| Finding {
            what: what.to_owned(),
            status,
            found: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [finding("db_file", CheckStatus::Good, None), finding("log", CheckStatus::Bad, Some("fix it"))];
        let expected = "ok    db_file  found\n\
                        FAIL  log      found\n\
                        \u{20}              -> fix it\n\n\
                        The service would not work; failures: 1, warnings: 0.\n";
        assert_eq!(table(&findings).as_str(), expected);
        assert!(table(&findings[..1]).as_str().ends_with("No problems found.\n"));
    }
}
