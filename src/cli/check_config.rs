//! `check-config`: the findings as a table for people.

use crate::app::check_config::{Finding, Verdict};

/// The findings, a line each; below a line that is not good, what to do.
pub fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or_default();
    let mut table = String::new();
    for Finding { what, verdict, found, remedy } in findings {
        let verdict = match verdict {
            Verdict::Good => "ok",
            Verdict::Doubtful => "warn",
            Verdict::Bad => "FAIL",
        };
        table += &format!("{verdict:4}  {what:width$}  {found}\n");
        if let Some(remedy) = remedy {
            table += &format!("{:4}  {:width$}  -> {remedy}\n", "", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (bad, doubtful) = (count(Verdict::Bad), count(Verdict::Doubtful));
    table += &match (bad, doubtful) {
        (0, 0) => "\nAll is as it should be.\n".to_owned(),
        (0, _) => format!("\nThe service would run; warnings: {doubtful}.\n"),
        _ => format!("\nThe service would not do its work; failures: {bad}, warnings: {doubtful}.\n"),
    };
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_that_is_not_good_has_its_remedy_below() {
        let finding = |what: &str, verdict, remedy: Option<&str>| Finding {
            what: what.to_owned(),
            verdict,
            found: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [finding("db_file", Verdict::Good, None), finding("log", Verdict::Bad, Some("mend it"))];
        let expected = "ok    db_file  found\n\
                        FAIL  log      found\n\
                        \u{20}              -> mend it\n\n\
                        The service would not do its work; failures: 1, warnings: 0.\n";
        assert_eq!(table(&findings), expected);
        assert!(table(&findings[..1]).ends_with("All is as it should be.\n"));
    }
}
