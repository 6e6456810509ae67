//! `[access]`: which user has which role, and for which VMs.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::validator::Validator;
use crate::model::{AccessRule, AccessRules, Annotations, Grant, Role};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    default_role: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleKeys>,
}

impl Default for Keys {
    fn default() -> Self {
        // The original exporter knows no roles: each user may do everything.
        Self { default_role: Role::Admin.as_str().to_owned(), rules: Vec::new() }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RuleKeys {
    users: Vec<String>,
    groups: Vec<String>,
    certificates: Vec<String>,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vms: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
}

const NO_ROLE: &str = "none";

const ROLES: &str = "admin, operator, reader, viewer or metrics";

impl Validator {
    pub(super) fn access(&mut self, keys: &Keys) -> AccessRules {
        let default_role = match keys.default_role.as_str() {
            NO_ROLE => None,
            text => text.parse::<Role>().map_or_else(
                |_| {
                    let problem = format_args!("invalid role {text:?}; expected {ROLES}, or none");
                    self.problem("access.default_role", problem);
                    None
                },
                Some,
            ),
        };
        let rules = keys.rules.iter().enumerate().map(|(index, rule)| self.rule(index, rule)).collect();
        AccessRules::new(default_role, rules)
    }

    /// The rules are counted from 1.
    fn rule(&mut self, index: usize, keys: &RuleKeys) -> AccessRule {
        let at = |key: &str| format!("access.rules.{}{key}", index + 1);
        if keys.users.is_empty() && keys.groups.is_empty() && keys.certificates.is_empty() {
            self.problem(&at(""), "names no user; set users, groups or certificates, such as users = [\"backup-*\"]");
        }
        let role = keys.role.parse::<Role>().unwrap_or_else(|_| {
            self.problem(&at(".role"), format_args!("invalid role {:?}; expected {ROLES}", keys.role));
            Role::Metrics
        });
        // A list that a template left empty must not mean all VMs.
        if keys.vms.as_ref().is_some_and(Vec::is_empty) {
            self.problem(&at(".vms"), "is empty; name VMs, or remove the key for all VMs");
        }
        if keys.labels.as_ref().is_some_and(BTreeMap::is_empty) {
            self.problem(&at(".labels"), "is empty; name labels, or remove the key for all snapshots");
        }
        if role == Role::Metrics && (keys.vms.is_some() || keys.labels.is_some()) {
            self.problem(&at(""), "has vms or labels, but the metrics are those of all VMs; remove vms and labels");
        }
        // The same limits as those of a request: a label beyond them would never match.
        let labels = keys.labels.clone().unwrap_or_default();
        if let Err(error) = Annotations::new(labels.clone(), None) {
            self.problem(&at(".labels"), format_args!("{error}; a snapshot cannot have such labels"));
        }
        AccessRule {
            users: self.patterns(&at(".users"), &keys.users),
            groups: self.patterns(&at(".groups"), &keys.groups),
            certificates: self.patterns(&at(".certificates"), &keys.certificates),
            grant: Arc::new(Grant {
                role,
                vms: self.patterns(&at(".vms"), keys.vms.as_deref().unwrap_or_default()),
                labels,
            }),
        }
    }

    fn patterns<T: FromStr<Err: Display>>(&mut self, key: &str, texts: &[String]) -> Vec<T> {
        let mut patterns = Vec::with_capacity(texts.len());
        for text in texts {
            match text.parse() {
                Ok(pattern) => patterns.push(pattern),
                Err(problem) => self.problem(key, format_args!("{text:?} {problem}")),
            }
        }
        patterns
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use crate::model::{Permission, Resource, User};

    const REST: &str =
        "ovm_endpoint = \"https://manager.example\"\n[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";

    #[test]
    fn rules_are_read_from_the_config() {
        let text = r#"
            [access]
            default_role = "none"
            [[access.rules]]
            users = ["backup-*", "ann"]
            role = "operator"
            vms = ["web-*", "0004fb00-0006-0000-0000-000000000001"]
            labels = { env = "test", job = "x" }
            [[access.rules]]
            groups = ["admins"]
            certificates = ["console.example"]
            role = "admin"
        "#;
        let rules = parse(&format!("{REST}{text}")).unwrap().access;
        let grants = |name| rules.grants_of(&User { name, groups: &[] });
        let vm = "0004fb00000600000000000000000001".parse().unwrap();
        let resource = Resource { vm: &vm, vm_name: None, labels: None };
        assert!(grants("backup-7").permits(Permission::Create, &resource));
        assert!(!grants("backup-7").permits(Permission::Administer, &resource));
        let of_certificate = rules.grants_of_certificate(&["console.example".to_owned()]);
        assert!(of_certificate.has_for_all(Permission::Administer));
        assert!(!grants("x").has(Permission::View) && !rules.forgotten_users_are_admins());
        assert!(
            parse(REST).unwrap().access.grants_of(&User { name: "x", groups: &[] }).has_for_all(Permission::Administer)
        );
    }

    #[test]
    fn every_wrong_key_is_named_with_a_remedy() {
        let many: String = (0..33).map(|number| format!("k{number} = \"\"\n")).collect();
        for (text, expected) in [
            ("default_role = \"root\"", "access.default_role: invalid role \"root\"; expected admin, operator"),
            ("[[access.rules]]\nrole = \"viewer\"", "access.rules.1: names no user; set users, groups or certificates"),
            ("[[access.rules]]\nusers = [\"a\"]", "access.rules.1.role: invalid role \"\"; expected admin"),
            ("[[access.rules]]\nusers = [\"a\"]\nrole = \"none\"", "access.rules.1.role: invalid role \"none\"; "),
            ("[[access.rules]]\nusers = [\"\"]\nrole = \"viewer\"", "access.rules.1.users: \"\" is empty; "),
            (
                "[[access.rules]]\nusers = [\"a\"]\nrole = \"viewer\"\nvms = [\" \"]",
                "access.rules.1.vms: \" \" is empty; ",
            ),
            (
                "[[access.rules]]\nusers = [\"a\"]\nrole = \"viewer\"\n[[access.rules]]\ngroups = [\"a\\nb\"]\nrole = \"viewer\"",
                "access.rules.2.groups: \"a\\nb\" has a character that is not printable; ",
            ),
            (
                "[[access.rules]]\nusers = [\"a\"]\nrole = \"metrics\"\nvms = [\"a\"]",
                "access.rules.1: has vms or labels, but the metrics are those of all VMs; ",
            ),
            (
                "[[access.rules]]\nusers = [\"a\"]\nrole = \"viewer\"\nlabels = { \"a b\" = \"\" }",
                "access.rules.1.labels: the label \"a b\" is invalid; ",
            ),
            (
                &format!("[[access.rules]]\nusers = [\"a\"]\nrole = \"viewer\"\n[access.rules.labels]\n{many}"),
                "access.rules.1.labels: labels has 33 entries; ",
            ),
            (
                "[[access.rules]]\nusers = [\"a\"]\nrol = \"viewer\"",
                "line 7: access.rules.1.rol: unknown field `rol`, expected one of `users`, `groups`, `certificates`, `role`",
            ),
            (
                "[[access.rules]]\nusers = \"a\"\nrole = \"viewer\"",
                "line 6: access.rules.1.users: is text; expected a list",
            ),
            ("rules = 5", "line 5: access.rules: is a whole number; expected a list"),
        ] {
            let message = parse(&format!("{REST}[access]\n{text}\n")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }
}
