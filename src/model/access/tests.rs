use proptest::prelude::*;

use super::*;

const PERMISSIONS: [Permission; 6] = [
    Permission::Metrics,
    Permission::View,
    Permission::Read,
    Permission::Create,
    Permission::DeleteOwn,
    Permission::Administer,
];

fn vm(number: u8) -> VmId {
    format!("0004fb000006000000000000000000{number:02x}").parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn rule(user: &str, role: Role, vms: &[&str], pairs: &[(&str, &str)]) -> AccessRule {
    let vms = vms.iter().map(|text| text.parse().unwrap()).collect();
    AccessRule {
        users: vec![user.parse().unwrap()],
        groups: Vec::new(),
        certificates: Vec::new(),
        grant: Arc::new(Grant { role, vms, labels: labels(pairs) }),
    }
}

fn user(name: &str) -> User<'_> {
    User { name, groups: &[] }
}

fn permits(
    rules: &AccessRules,
    name: &str,
    permission: Permission,
    target: (u8, &str, Option<&[(&str, &str)]>),
) -> bool {
    let (vm, labels) = (vm(target.0), target.2.map(labels));
    let resource = Resource { vm: &vm, vm_name: Some(target.1), labels: labels.as_ref() };
    rules.grants_of(&user(name)).permits(permission, &resource)
}

#[test]
fn without_rules_every_user_is_an_admin() {
    let grants = AccessRules::default().grants_of(&user("anyone"));
    assert!(PERMISSIONS.into_iter().all(|permission| grants.has(permission) && grants.has_for_all(permission)));
    let grants = AccessRules::new(None, Vec::new()).grants_of(&user("anyone"));
    assert!(!PERMISSIONS.into_iter().any(|permission| grants.has(permission)));
}

#[test]
fn each_role_permits_what_the_one_before_it_does() {
    let ordered = [Role::Viewer, Role::Reader, Role::Operator, Role::Admin];
    for permission in PERMISSIONS {
        let permitted: Vec<bool> = ordered.iter().map(|role| role.permits(permission)).collect();
        assert!(permitted.is_sorted(), "{permission:?}: {permitted:?}");
        let least = permission.least_role();
        assert!(least.permits(permission), "{permission:?}");
        let lower = ordered.into_iter().take_while(|role| *role != least);
        assert!(least == Role::Metrics || !lower.into_iter().any(|role| role.permits(permission)), "{permission:?}");
    }
    assert!(!Role::Metrics.permits(Permission::View) && !Role::Operator.permits(Permission::Metrics));
    for role in Role::ALL {
        assert_eq!(role.as_str().parse(), Ok(role));
    }
    assert_eq!("none".parse::<Role>(), Err(UnknownRole));
}

#[test]
fn matching_rules_add_up_and_replace_the_default_role() {
    let rules = AccessRules::new(
        Some(Role::Admin),
        vec![
            rule("bob", Role::Viewer, &[], &[]),
            rule("bob", Role::Operator, &["web-*"], &[("env", "test")]),
            rule("ann", Role::Reader, &["0004fb00000600000000000000000002"], &[]),
        ],
    );
    let may = |name, permission, target| permits(&rules, name, permission, target);
    assert!(may("bob", Permission::View, (1, "db-1", None)));
    assert!(!may("bob", Permission::Read, (1, "db-1", None)));
    assert!(may("bob", Permission::Create, (1, "web-1", Some(&[("env", "test"), ("job", "x")]))));
    assert!(!may("bob", Permission::Create, (1, "web-1", Some(&[]))));
    assert!(!may("bob", Permission::Create, (1, "web-1", Some(&[("env", "prod")]))));
    // The VM itself has no labels.
    assert!(may("bob", Permission::Create, (1, "web-1", None)));
    assert!(may("Ann ", Permission::Read, (2, "db-1", None)) && !may("ann", Permission::View, (1, "db-1", None)));
    assert!(may("carl", Permission::Administer, (1, "db-1", None)) && rules.forgotten_users_are_admins());
    let bob = rules.grants_of(&user("bob"));
    assert!(bob.has_for_all(Permission::View) && bob.has(Permission::Create) && !bob.has_for_all(Permission::Create));
    assert!(bob.has_vm_names() && !rules.grants_of(&user("ann")).has_vm_names());
}

#[test]
fn groups_and_certificates_name_users_too() {
    let rules = AccessRules::new(
        None,
        vec![AccessRule {
            users: Vec::new(),
            groups: vec!["backup".parse().unwrap()],
            certificates: vec!["*.example".parse().unwrap()],
            grant: Arc::new(Grant::of_role(Role::Reader)),
        }],
    );
    let groups = ["other".to_owned(), "Backup".to_owned()];
    let grants = |groups| rules.grants_of(&User { name: "x", groups });
    assert!(grants(&groups).has(Permission::Read) && !grants(&groups[..1]).has(Permission::Read));
    let of_certificate = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rules.grants_of_certificate(&names)
    };
    assert!(of_certificate(&["x", "A.example"]).has(Permission::Read));
    assert!(of_certificate(&["x", "example"]).is_empty() && of_certificate(&[]).is_empty());
}

#[test]
fn a_certificate_has_only_the_rules_for_certificates() {
    let everyone = rule("*", Role::Admin, &[], &[]);
    let named = AccessRule { users: Vec::new(), certificates: vec!["host".parse().unwrap()], ..everyone.clone() };
    let rules = AccessRules::new(Some(Role::Admin), vec![everyone, named.clone()]);
    assert!(rules.grants_of_certificate(&["other".to_owned()]).is_empty());
    assert!(rules.grants_of_certificate(&["host".to_owned()]).has_for_all(Permission::Administer));
    // A user with the same name as a certificate is another one.
    assert!(!AccessRules::new(None, vec![named]).grants_of(&user("host")).has(Permission::View));
}

fn any_rule(users: &'static [&'static str]) -> impl Strategy<Value = AccessRule> {
    let vms = prop::sample::subsequence(vec!["web-*", "*", "0004fb00000600000000000000000001", "db-1"], 0..3);
    let pairs = prop::sample::subsequence(vec![("env", "test"), ("env", "prod"), ("job", "x")], 0..2);
    (prop::sample::select(users), prop::sample::select(Role::ALL.to_vec()), vms, pairs)
        .prop_map(|(user, role, vms, pairs)| rule(user, role, &vms, &pairs))
}

fn any_target() -> impl Strategy<Value = (u8, &'static str, Option<Vec<(&'static str, &'static str)>>)> {
    let pairs = prop::sample::subsequence(vec![("env", "test"), ("job", "x")], 0..=2);
    (0..3_u8, prop::sample::select(vec!["web-1", "db-1", "mail"]), prop::option::of(pairs))
}

proptest! {
    #[test]
    fn all_permissions_on_something_are_those_that_it_permits(
        rules in prop::collection::vec(any_rule(&["bob", "b*", "ann"]), 0..5),
        default in prop::option::of(prop::sample::select(Role::ALL.to_vec())),
        target in any_target(),
    ) {
        let rules = AccessRules::new(default, rules);
        let (vm, labels) = (vm(target.0), target.2.as_deref().map(labels));
        let resource = Resource { vm: &vm, vm_name: Some(target.1), labels: labels.as_ref() };
        let grants = rules.grants_of(&user("bob"));
        let mut expected = PERMISSIONS.to_vec();
        expected.retain(|permission| *permission != Permission::Metrics && grants.permits(*permission, &resource));
        prop_assert_eq!(grants.permissions_on(&resource).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rules_for_other_users_change_nothing(
        own in prop::collection::vec(any_rule(&["bob", "b*"]), 0..4),
        others in prop::collection::vec(any_rule(&["ann", "c*", "bobby"]), 0..4),
        default in prop::option::of(prop::sample::select(Role::ALL.to_vec())),
        target in any_target(),
    ) {
        // Before and after the user's own rules, because their order must not matter.
        let both = others.iter().take(2).chain(&own).chain(others.iter().skip(2)).cloned().collect();
        let (alone, both) = (AccessRules::new(default, own), AccessRules::new(default, both));
        for permission in PERMISSIONS {
            let target = (target.0, target.1, target.2.as_deref());
            prop_assert_eq!(
                permits(&alone, "bob", permission, target),
                permits(&both, "bob", permission, target)
            );
        }
    }

    #[test]
    fn a_further_rule_takes_nothing_away_from_rules(
        rules in prop::collection::vec(any_rule(&["bob"]), 1..4),
        more in any_rule(&["bob"]),
        target in any_target(),
    ) {
        let all = rules.iter().chain([&more]).cloned().collect();
        let (few, all) = (AccessRules::new(None, rules), AccessRules::new(None, all));
        for permission in PERMISSIONS {
            let target = (target.0, target.1, target.2.as_deref());
            prop_assert!(!permits(&few, "bob", permission, target) || permits(&all, "bob", permission, target));
        }
    }

    #[test]
    fn a_snapshot_is_never_more_accessible_than_its_vm(
        rules in prop::collection::vec(any_rule(&["bob"]), 0..4),
        target in any_target(),
    ) {
        let rules = AccessRules::new(None, rules);
        for permission in PERMISSIONS {
            let of_snapshot = permits(&rules, "bob", permission, (target.0, target.1, target.2.as_deref()));
            prop_assert!(!of_snapshot || permits(&rules, "bob", permission, (target.0, target.1, None)));
        }
    }
}
