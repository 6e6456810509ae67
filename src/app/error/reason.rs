//! Why something cannot be used, in a text that may name VMs and snapshots which not every user may see.

use std::fmt;

use crate::model::{SnapshotId, VmId};

/// A reason. Its [`fmt::Display`] names no other VM or snapshot, so that only [`Reason::seen_by`] can disclose one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    text: String,
    /// Who is named, and at which byte of the text.
    named: Option<Box<(usize, Named)>>,
}

/// Whom a reason names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// Other VMs: their names and, if they are valid, their ids.
    Vms(Vec<(String, Option<VmId>)>),
    /// A snapshot of some VM.
    Snapshot(SnapshotId),
}

/// What a user may see.
pub(crate) trait Sight {
    fn sees_everything(&self) -> bool;

    fn sees_vm(&self, vm: &VmId) -> bool;
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text, named: None }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Reason {
    /// A reason that names others between two parts of its text.
    pub(crate) fn naming(before: &str, named: Named, after: &str) -> Self {
        Self { text: format!("{before}{after}"), named: Some(Box::new((before.len(), named))) }
    }

    /// The reason after `prefix`.
    #[must_use]
    pub(crate) fn after(mut self, prefix: &str) -> Self {
        self.text.insert_str(0, prefix);
        if let Some(named) = &mut self.named {
            named.0 += prefix.len();
        }
        self
    }

    /// The text for a user.
    pub(crate) fn seen_by(&self, user: &impl Sight) -> String {
        let Some((at, named)) = self.named.as_deref() else { return self.text.clone() };
        let name = match named {
            Named::Vms(vms) => {
                let sees = |id: &Option<VmId>| id.as_ref().map_or(user.sees_everything(), |id| user.sees_vm(id));
                vms.iter().find(|(_, id)| sees(id)).map(|(name, _)| match vms.len() - 1 {
                    0 => format!("VM {name}"),
                    more => format!("VM {name} and {more} more"),
                })
            }
            Named::Snapshot(id) => user.sees_everything().then(|| format!("snapshot {id}")),
        };
        self.with_name(*at, name.as_deref().unwrap_or(named.anonymous()))
    }

    fn with_name(&self, at: usize, name: &str) -> String {
        let (before, after) = self.text.split_at(at);
        format!("{before}{name}{after}")
    }
}

impl Named {
    fn anonymous(&self) -> &'static str {
        match self {
            Self::Vms(_) => "another VM",
            Self::Snapshot(_) => "a snapshot",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named.as_deref() {
            None => f.write_str(&self.text),
            Some((at, named)) => f.write_str(&self.with_name(*at, named.anonymous())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sees some VMs, or all.
    struct User(Option<Vec<VmId>>);

    impl Sight for User {
        fn sees_everything(&self) -> bool {
            self.0.is_none()
        }

        fn sees_vm(&self, vm: &VmId) -> bool {
            self.0.as_ref().is_none_or(|visible| visible.contains(vm))
        }
    }

    #[test]
    fn a_reason_names_only_what_the_user_may_see() {
        let id = |number: u32| format!("{number:032x}").parse::<VmId>().unwrap();
        let vms = |numbers: &[u32]| Named::Vms(numbers.iter().map(|n| (format!("vm{n}"), Some(id(*n)))).collect());
        let seen = |named: Named, user: &User| Reason::naming("is of ", named, ".").after("xvda: ").seen_by(user);
        let (all, none, two) = (User(None), User(Some(Vec::new())), User(Some(vec![id(2)])));
        assert_eq!(seen(vms(&[1]), &all), "xvda: is of VM vm1.");
        assert_eq!(seen(vms(&[1, 2, 3]), &all), "xvda: is of VM vm1 and 2 more.");
        assert_eq!(seen(vms(&[1, 2, 3]), &two), "xvda: is of VM vm2 and 2 more.");
        assert_eq!(seen(vms(&[1, 2, 3]), &none), "xvda: is of another VM.");
        // A VM without an id cannot be named in a rule.
        let nameless = || Named::Vms(vec![("x".to_owned(), None)]);
        assert_eq!((seen(nameless(), &all), seen(nameless(), &two)).1, "xvda: is of another VM.");
        let snapshot = || Named::Snapshot(SnapshotId::from_u128(7));
        assert_eq!(seen(snapshot(), &two), "xvda: is of a snapshot.");
        assert!(seen(snapshot(), &all).contains("00000007"));
        // The text that leaks nothing is the default.
        assert_eq!(Reason::naming("is of ", vms(&[1]), ".").to_string(), "is of another VM.");
        assert_eq!(Reason::from("is full").after("xvda: ").to_string(), "xvda: is full");
    }
}
