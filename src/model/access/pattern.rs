//! Patterns for users and VMs. `*` stands for any characters, also for none.

use std::str::FromStr;

use crate::model::id::VmId;
use crate::model::printable::is_printable;

/// A pattern is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("is empty; name one, or use * for all")]
    Empty,
    #[error("has a character that is not printable; remove it")]
    NotPrintable,
}

fn checked(text: &str) -> Result<&str, BadPattern> {
    match text.trim() {
        "" => Err(BadPattern::Empty),
        text if is_printable(text) => Ok(text),
        _ => Err(BadPattern::NotPrintable),
    }
}

/// Names users, groups or certificates.
///
/// Case and spaces at the ends do not matter, and several spaces count as one: user directories usually ignore both.
/// Otherwise a user could log in under another spelling, to which no rule applies, and get the default role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPattern(String);

/// A name as patterns are compared with it, so that all its spellings are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FoldedName(String);

impl FoldedName {
    pub fn new(name: &str) -> Self {
        Self(name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether user directories have no other spelling of it.
    pub fn is_ascii(&self) -> bool {
        self.0.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
    }
}

impl UserPattern {
    pub fn matches(&self, name: &FoldedName) -> bool {
        is_match(&self.0, &name.0)
    }
}

impl FromStr for UserPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        checked(text).map(|text| Self(FoldedName::new(text).0))
    }
}

/// Names VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmPattern {
    Id(VmId),
    /// Their friendly names, as written.
    Name(String),
}

impl VmPattern {
    pub fn matches(&self, vm: &VmId, name: Option<&str>) -> bool {
        match self {
            Self::Id(id) => id == vm,
            Self::Name(pattern) => name.is_some_and(|name| is_match(pattern, name)),
        }
    }
}

impl FromStr for VmPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let text = checked(text)?;
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Id))
    }
}

/// In time proportional to the product of the lengths, whatever the pattern.
fn is_match(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut position) = (0, 0);
    // Where to continue if the characters after the last `*` do not match: it then stands for one more.
    let mut last_star = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                last_star = Some((at, position));
                at += 1;
            }
            Some(byte) if *byte == text[position] => (at, position) = (at + 1, position + 1),
            _ => {
                let Some((star, from)) = last_star else { return false };
                last_star = Some((star, from + 1));
                (at, position) = (star + 1, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("bob", "bob", true),
            ("bob", "bobby", false),
            ("bob", "", false),
            ("*", "", true),
            ("*", "anyone", true),
            ("backup-*", "backup-7", true),
            ("backup-*", "backup-", true),
            ("backup-*", "nobackup-7", false),
            ("*-prod-*", "web-prod-1", true),
            ("*-prod-*", "web-test-1", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("**", "x", true),
            ("*é", "café", true),
        ] {
            assert_eq!(is_match(pattern, text), expected, "{pattern} {text}");
        }
        // A matcher that tries all possibilities would not end here.
        let (pattern, text) = ("a*".repeat(40) + "b", "a".repeat(2000));
        assert!(!is_match(&pattern, &text));
    }

    #[test]
    fn other_spellings_of_a_user_are_the_same_user() {
        let pattern: UserPattern = " Backup  Operator* ".parse().unwrap();
        for name in ["backup operator", "BACKUP OPERATOR 2", " backup   operator\u{a0}"] {
            assert!(pattern.matches(&FoldedName::new(name)), "{name:?}");
        }
        assert!(!pattern.matches(&FoldedName::new("backupoperator")));
        assert_eq!("".parse::<UserPattern>(), Err(BadPattern::Empty));
        assert_eq!("  ".parse::<VmPattern>(), Err(BadPattern::Empty));
        assert_eq!("a\nb".parse::<UserPattern>(), Err(BadPattern::NotPrintable));
    }

    #[test]
    fn a_vm_is_named_by_its_id_or_its_friendly_name() {
        let vm: VmId = "0004fb00000600000000000000000001".parse().unwrap();
        let by_id: VmPattern = "0004FB00-0006-0000-0000-000000000001".parse().unwrap();
        assert!(by_id.matches(&vm, None) && by_id.matches(&vm, Some("web-1")));
        let by_name: VmPattern = "web-*".parse().unwrap();
        assert!(by_name.matches(&vm, Some("web-1")));
        for name in [None, Some("Web-1"), Some("db-1")] {
            assert!(!by_name.matches(&vm, name), "{name:?}");
        }
        // An id that is a friendly name too is an id: otherwise a user could give a VM the id of another one as its name.
        let named: VmPattern = "0004fb00000600000000000000000002".parse().unwrap();
        assert!(!named.matches(&vm, Some("0004fb00000600000000000000000002")));
    }
}
