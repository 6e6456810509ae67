//! Who may use the Unix socket, without a password or a token.

use std::io;

use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::session::Session;

/// The process at the other end of the Unix socket, as the kernel recorded it when it connected.
#[derive(Clone, Debug)]
pub struct LocalPeer {
    pub uid: u32,
    /// The primary group of the process.
    pub gid: u32,
    pub pid: Option<i32>,
    /// Its supplementary groups. `None` before Linux 4.13.
    pub groups: Option<Vec<u32>>,
}

/// Root, the service's own user, and the members of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operators {
    group: Option<Gid>,
}

impl Operators {
    /// With the members of this group. `None` if the host has no such group.
    ///
    /// # Errors
    /// The host's file of groups cannot be read.
    pub fn with_group(name: &str) -> io::Result<Option<Self>> {
        Ok(Group::from_name(name)?.map(|group| Self { group: Some(group.gid) }))
    }

    /// The id of the group.
    pub fn group(self) -> Option<u32> {
        self.group.map(Gid::as_raw)
    }

    /// The session of `peer`, if it may use the socket. It has the name of the local user after `unix:`, and all permissions.
    pub fn session(self, peer: &LocalPeer) -> Option<Session> {
        self.includes(peer).then(|| Session::of_operator(&user_name(peer.uid)))
    }

    fn includes(self, peer: &LocalPeer) -> bool {
        if peer.uid == 0 || peer.uid == geteuid().as_raw() {
            return true;
        }
        let Some(group) = self.group else { return false };
        peer.gid == group.as_raw()
            || match &peer.groups {
                Some(groups) => groups.contains(&group.as_raw()),
                // The kernel has checked the groups of the process against the mode of the socket. /proc is of no use:
                // it may already show another process with this id.
                None => is_listed_member(peer.uid, group),
            }
    }
}

/// Whether the host's files of users and groups list the user as a member.
fn is_listed_member(uid: u32, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let listed = || Group::from_gid(group).ok().flatten().is_some_and(|group| group.mem.contains(&user.name));
    user.gid == group || listed()
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        // The user is removed, or in a directory that only other programs can read.
        _ => format!("uid={uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not in the files of this host.
    const NO_ID: u32 = 3_999_999_999;

    fn peer(uid: u32, gid: u32, groups: Option<&[u32]>) -> LocalPeer {
        LocalPeer { uid, gid, pid: Some(1), groups: groups.map(<[u32]>::to_vec) }
    }

    #[test]
    fn root_the_service_and_the_group_are_operators() {
        let (nobody_else, with_group) = (Operators::default(), Operators { group: Some(Gid::from_raw(4242)) });
        let own = geteuid().as_raw();
        for operators in [nobody_else, with_group] {
            assert_eq!(operators.session(&peer(0, 0, None)).unwrap().subject(), "unix:root");
            assert!(operators.session(&peer(own, 1, Some(&[]))).is_some());
            assert!(operators.session(&peer(NO_ID, NO_ID, Some(&[0, 4241]))).is_none());
            assert!(operators.session(&peer(NO_ID, NO_ID, None)).is_none());
        }
        for member in [peer(NO_ID, 4242, Some(&[])), peer(NO_ID, 1, Some(&[7, 4242]))] {
            assert!(nobody_else.session(&member).is_none(), "{member:?}");
            assert_eq!(with_group.session(&member).unwrap().subject(), format!("unix:uid={NO_ID}"));
        }
    }

    #[test]
    fn without_groups_from_the_kernel_the_hosts_files_decide() {
        // Each user of the host is a member of its primary group.
        let text = std::fs::read_to_string("/etc/passwd").unwrap();
        let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let ids = fields.filter(|fields| fields.len() > 3).map(|f| (f[2].parse().unwrap(), f[3].parse().unwrap()));
        let ids: Vec<(u32, u32)> = ids.filter(|(uid, _)| *uid != 0).collect();
        assert!(!ids.is_empty());
        for (uid, gid) in ids {
            assert!(Operators { group: Some(Gid::from_raw(gid)) }.session(&peer(uid, NO_ID, None)).is_some(), "{uid}");
        }
    }
}
