//! Which of a VM's disks a snapshot takes, and why not the others.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::App;
use crate::inventory::load_ovsmeta;
use crate::inventory::ovsmeta::OvsMeta;
use crate::inventory::vm_cfg::{DiskLine, DiskSource};
use crate::model::RepositoryId;
use crate::repository::executor::Kind;
use crate::repository::{LocatedDisk, Misplaced, Repository, Unclonable, assign, clone_support, locate};
use crate::sys::folder::Folder;

/// What a snapshot does with a disk.
pub(super) enum Verdict {
    /// Takes it.
    Taken(LocatedDisk),
    /// Leaves it out, as it holds nothing of the VM's own: a CD-ROM, a read-only disk elsewhere.
    LeftOut(String),
    /// Cannot be made at all: leaving this disk out would lose data.
    Prevents(String),
}

/// A disk of a definition, looked at.
pub(super) struct Examined {
    /// Its size, bytes, and the repository it lies in, where it could be opened.
    pub found: Option<(u64, RepositoryId)>,
    /// The name that people gave it.
    pub friendly_name: Option<String>,
    pub verdict: Verdict,
}

/// What a disk's friendly name starts with that no backup takes.
const NO_BACKUP: &str = "[NOBAK]";

impl Examined {
    /// The same, left out where the disk's name says so: for all who do not ask for it.
    pub(super) fn heeding_its_name(mut self) -> Self {
        let says_no = self.friendly_name.as_ref().is_some_and(|name| name.starts_with(NO_BACKUP));
        if says_no && !matches!(self.verdict, Verdict::LeftOut(_)) {
            self.verdict = Verdict::LeftOut(format!("its name starts with {NO_BACKUP}"));
        }
        self
    }
}

/// Looks at disks, reading what repositories say about their files once.
pub(super) struct Examiner<'a> {
    app: &'a App,
    repositories: Vec<Repository>,
    opened: HashMap<RepositoryId, Opened>,
}

/// A repository that disks are looked at in.
struct Opened {
    /// Its folder, or why it cannot be opened.
    root: Result<Folder, String>,
    notes: Option<OvsMeta>,
}

impl<'a> Examiner<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self { app, repositories: app.repositories.answering(), opened: HashMap::new() }
    }

    pub(super) fn examine(&mut self, line: &DiskLine) -> Examined {
        let nothing_found = |verdict| Examined { found: None, friendly_name: None, verdict };
        let path = match &line.source {
            DiskSource::File(path) => path,
            DiskSource::Empty => return nothing_found(Verdict::LeftOut("no medium".to_owned())),
            DiskSource::Other { scheme, target } => {
                return nothing_found(refused(line, format!("{scheme}:{target} is no file in a repository")));
            }
        };
        let located = match self.locate(Path::new(path)) {
            Ok(located) => located,
            Err(problem) => return nothing_found(refused(line, format!("{path} {problem}"))),
        };
        let file_name = Path::new(&located.source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let notes = self.opened.get(located.repository.id()).and_then(|opened| opened.notes.as_ref());
        let friendly_name = notes.and_then(|notes| notes.simple_name(file_name)).map(str::to_owned);
        let object_type = notes.and_then(|notes| notes.object_type(file_name)).filter(|kind| *kind != "VIRTUAL_DISK");
        let verdict_without_mount = if line.cdrom {
            Some(Verdict::LeftOut("a CD-ROM".to_owned()))
        } else if let Some(kind) = object_type {
            Some(Verdict::LeftOut(format!("the manager calls it {kind}")))
        } else if !line.is_writable() && file_name.ends_with(".iso") {
            Some(Verdict::LeftOut("an ISO image".to_owned()))
        } else {
            None
        };
        Examined {
            found: Some((located.size, located.repository.id().clone())),
            friendly_name,
            verdict: verdict_without_mount.unwrap_or_else(|| match self.unclonable(&located) {
                Some(reason) => refused(line, reason),
                None => Verdict::Taken(located),
            }),
        }
    }

    /// Opens the disk at `path`, or says why it cannot be opened.
    fn locate(&mut self, path: &Path) -> Result<LocatedDisk, String> {
        let assigned = assign(&self.repositories, path).map_err(|misplaced| misplaced.to_string())?;
        let opened = self.opened.entry(assigned.repository.id().clone()).or_insert_with(|| {
            let opened = assigned.repository.run(Kind::SHORT, |_, root| Ok((root.clone(), load_ovsmeta(root))));
            let (root, notes) = opened
                .map_err(|error| Misplaced::from(error).to_string())
                .map_or_else(|error| (Err(error), None), |(root, notes)| (Ok(root), notes));
            Opened { root, notes }
        });
        let root = opened.root.clone()?;
        let located = assigned.repository.clone().executor().run(Kind::SHORT, move |_| locate::open(&root, &assigned));
        located.map_err(|error| error.to_string())?.map_err(|misplaced| misplaced.to_string())
    }

    fn unclonable(&self, located: &LocatedDisk) -> Option<String> {
        let root = self.opened.get(located.repository.id()).and_then(|opened| opened.root.as_ref().ok());
        let root_device = root.and_then(|root| root.metadata().ok()).map(|root| root.dev());
        let root = located.repository.mount_point();
        match (root_device, located.file.metadata().map(|file| file.dev())) {
            (Some(root), Ok(file)) if root != file => {
                Some("lies on another file system, mounted inside the repository".to_owned())
            }
            _ => {
                let possible = match self.app.clone_support.of(root) {
                    // A snapshot will fail for what it is.
                    Err(Unclonable::NotNow(_)) => Ok(()),
                    possible => possible,
                };
                let possible = possible.and_then(|()| clone_support::of_disk(&located.file, &located.path));
                possible.err().map(|reason| reason.to_string())
            }
        }
    }
}

/// A disk that cannot be taken prevents the snapshot only where the guest can write to it.
fn refused(line: &DiskLine, reason: String) -> Verdict {
    if line.is_writable() && !line.cdrom { Verdict::Prevents(reason) } else { Verdict::LeftOut(reason) }
}
