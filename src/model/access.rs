//! Who may do what: roles, and the rules that give them to users.

mod pattern;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::id::VmId;

pub use pattern::{FoldedName, UserPattern, VmPattern};

/// What a request does. Each route needs one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Read the metrics.
    Metrics,
    /// List VMs, snapshots and repositories, and read the status.
    View,
    /// Read what snapshots contain: compare, download, calculate checksums. Leases, which keep a snapshot for that.
    Read,
    /// Create snapshots.
    Create,
    /// Delete snapshots that the user created.
    DeleteOwn,
    /// Delete other snapshots, and adopt.
    Administer,
}

impl Permission {
    pub const ALL: [Self; 6] = [Self::Metrics, Self::View, Self::Read, Self::Create, Self::DeleteOwn, Self::Administer];

    /// Those that concern VMs and snapshots.
    pub const OF_VMS: [Self; 5] = [Self::View, Self::Read, Self::Create, Self::DeleteOwn, Self::Administer];

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::View => "view",
            Self::Read => "read",
            Self::Create => "create",
            Self::DeleteOwn => "delete_own",
            Self::Administer => "administer",
        }
    }
}

/// A named set of permissions. Each of viewer, reader, operator and admin permits all that the one before it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Metrics,
    Viewer,
    Reader,
    Operator,
    Admin,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Metrics, Self::Viewer, Self::Reader, Self::Operator, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Viewer => "viewer",
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    pub fn permits(self, permission: Permission) -> bool {
        use Permission::{Create, DeleteOwn, Metrics, Read, View};
        match self {
            Self::Metrics => permission == Metrics,
            Self::Viewer => permission == View,
            Self::Reader => matches!(permission, View | Read),
            Self::Operator => matches!(permission, View | Read | Create | DeleteOwn),
            Self::Admin => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no role of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

impl Permission {
    /// The role with the fewest permissions that has this one.
    pub fn least_role(self) -> Role {
        match self {
            Self::Metrics => Role::Metrics,
            Self::View => Role::Viewer,
            Self::Read => Role::Reader,
            Self::Create | Self::DeleteOwn => Role::Operator,
            Self::Administer => Role::Admin,
        }
    }
}

/// A role for some VMs and snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    /// Empty: all VMs.
    pub vms: Vec<VmPattern>,
    /// Only snapshots with all of these labels.
    pub labels: BTreeMap<String, String>,
}

/// A VM, or a snapshot of it.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    pub vm: &'a VmId,
    /// The friendly name of the VM, if it is known. Without one, only rules with the VM's id, or for all VMs, include it.
    pub vm_name: Option<&'a str>,
    /// The labels of the snapshot. `None`: the VM itself, which labels do not limit.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl Grant {
    /// This role for all VMs.
    pub fn of_role(role: Role) -> Self {
        Self { role, vms: Vec::new(), labels: BTreeMap::new() }
    }

    fn is_limited(&self) -> bool {
        !self.vms.is_empty() || !self.labels.is_empty()
    }

    fn includes(&self, resource: &Resource<'_>) -> bool {
        let has_labels = |labels: &BTreeMap<String, String>| {
            self.labels.iter().all(|(key, value)| labels.get(key).is_some_and(|found| found == value))
        };
        let has_vm = || self.vms.iter().any(|pattern| pattern.matches(resource.vm, resource.vm_name));
        (self.vms.is_empty() || has_vm()) && resource.labels.is_none_or(has_labels)
    }
}

/// The grants of one user. The user may do what one of them permits.
#[derive(Clone, Debug)]
pub struct Grants(Arc<[Arc<Grant>]>);

impl Grants {
    /// All permissions.
    pub fn admin() -> Self {
        Self([Arc::new(Grant::of_role(Role::Admin))].into())
    }

    fn with(&self, permission: Permission) -> impl Iterator<Item = &Grant> {
        self.0.iter().map(Arc::as_ref).filter(move |grant| grant.role.permits(permission))
    }

    /// Whether the user may do nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the user has the permission for something.
    pub fn has(&self, permission: Permission) -> bool {
        self.with(permission).next().is_some()
    }

    /// Whether the user has the permission for all VMs and all snapshots.
    pub fn has_for_all(&self, permission: Permission) -> bool {
        self.with(permission).any(|grant| !grant.is_limited())
    }

    pub fn permits(&self, permission: Permission, resource: &Resource<'_>) -> bool {
        self.with(permission).any(|grant| grant.includes(resource))
    }

    /// What the user may do with the VM or the snapshot. This compares it with each grant once.
    pub fn permissions_on(&self, resource: &Resource<'_>) -> impl Iterator<Item = Permission> + use<> {
        let roles: Vec<_> = self.0.iter().filter(|grant| grant.includes(resource)).map(|grant| grant.role).collect();
        Permission::OF_VMS.into_iter().filter(move |permission| roles.iter().any(|role| role.permits(*permission)))
    }

    /// Whether the friendly names of VMs matter.
    pub fn has_vm_names(&self) -> bool {
        self.0.iter().flat_map(|grant| &grant.vms).any(|pattern| matches!(pattern, VmPattern::Name(_)))
    }
}

/// Gives a role to the users that one of the lists names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    pub users: Vec<UserPattern>,
    pub groups: Vec<UserPattern>,
    pub certificates: Vec<UserPattern>,
    pub grant: Arc<Grant>,
}

/// What is known of a user who has logged in.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    pub name: &'a str,
    pub groups: &'a [String],
}

impl AccessRule {
    fn applies_to(&self, name: &FoldedName, groups: &[FoldedName]) -> bool {
        is_one_of(&self.users, name) || groups.iter().any(|group| is_one_of(&self.groups, group))
    }
}

fn is_one_of(patterns: &[UserPattern], name: &FoldedName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// The rules of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRules {
    default: Option<Arc<Grant>>,
    rules: Vec<AccessRule>,
}

impl Default for AccessRules {
    /// Every user is an admin.
    fn default() -> Self {
        Self::new(Some(Role::Admin), Vec::new())
    }
}

impl AccessRules {
    /// `default_role` is the role of users to whom no rule applies. `None`: they may do nothing.
    pub fn new(default_role: Option<Role>, rules: Vec<AccessRule>) -> Self {
        Self { default: default_role.map(Grant::of_role).map(Arc::new), rules }
    }

    /// All grants of the user. A user to whom a rule applies does not have the default role: otherwise a rule that is
    /// meant to limit a user would have no effect.
    pub fn grants_of(&self, user: &User<'_>) -> Grants {
        let groups: Vec<_> = user.groups.iter().map(|group| FoldedName::new(group)).collect();
        let name = FoldedName::new(user.name);
        let ruled = self.rules.iter().filter(|rule| rule.applies_to(&name, &groups));
        let grants: Vec<_> = ruled.map(|rule| Arc::clone(&rule.grant)).collect();
        if !grants.is_empty() {
            return Grants(grants.into());
        }
        // A directory may take "bób" for "bob", to whom a rule applies.
        let may_be_another = !self.rules.is_empty() && !name.is_ascii();
        Grants(self.default.iter().filter(|_| !may_be_another).cloned().collect())
    }

    /// All grants of a client that has shown a certificate with these names, and no token. It has no default role: the
    /// authority of the certificates may issue some for other purposes.
    pub fn grants_of_certificate(&self, names: &[String]) -> Grants {
        let names: Vec<_> = names.iter().map(|name| FoldedName::new(name)).collect();
        let applies = |rule: &&AccessRule| names.iter().any(|name| is_one_of(&rule.certificates, name));
        Grants(self.rules.iter().filter(applies).map(|rule| Arc::clone(&rule.grant)).collect())
    }

    /// Whether there are rules, but users whom they forget are admins.
    pub fn forgotten_users_are_admins(&self) -> bool {
        !self.rules.is_empty() && self.default.as_ref().is_some_and(|grant| grant.role == Role::Admin)
    }
}

#[cfg(test)]
mod tests;
