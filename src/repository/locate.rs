//! From the path that a VM definition names to an open disk inside a repository.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Repository, SNAPSHOTS};
use crate::model::{DiskSource, VolumeId};
use crate::sys::folder::Folder;
use crate::sys::volume;

/// Why a path is not taken as a VM's disk.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path leads nowhere, or to what cannot be opened as a disk: a folder, a device, a link.
    #[error("cannot be opened: {0}")]
    Unreadable(#[from] io::Error),
    /// It lies outside all repositories.
    #[error("lies outside of every repository")]
    Outside,
    /// A path that is no text.
    #[error("has a name that is not UTF-8")]
    NotText,
    /// No disk of a VM has its place there.
    #[error("{0}")]
    NoDisk(&'static str),
}

/// A path that a VM definition names, and where it lies. Nothing was looked at to find that out.
#[derive(Clone, Debug)]
pub struct AssignedPath {
    /// The repository that it lies in.
    pub repository: Repository,
    /// The path below the repository: plain names alone.
    pub below: PathBuf,
    /// The folders that the path leads into and out of again by `..`.
    detours: Vec<PathBuf>,
}

/// A VM's disk, open for reading.
#[derive(Debug)]
pub struct LocatedDisk {
    /// The repository that it lies in.
    pub repository: Repository,
    /// Which disk it is.
    pub source: DiskSource,
    /// The open disk.
    pub file: File,
    /// The folder that it was opened in, and its name there.
    pub location: (Folder, OsString),
    /// Its path, for messages.
    pub path: PathBuf,
    /// Its size when it was opened, bytes.
    pub size: u64,
    /// The file system that it lies on.
    pub volume: Option<VolumeId>,
}

/// The repository that a VM definition's `path` lies in; of repositories inside one another, the innermost.
///
/// The path alone decides: no file system is asked, so that none that hangs can hold this up.
///
/// # Errors
/// [`PathError::Outside`], also where `..` leads out of the repository.
pub fn assign<'a>(
    repositories: impl IntoIterator<Item = &'a Repository, IntoIter: Clone>,
    path: &Path,
) -> Result<AssignedPath, PathError> {
    let repositories = repositories.into_iter();
    let mut outer = below_any(repositories.clone(), path).filter_map(|(_, root, below)| {
        let (below, detours) = without_detours(below)?;
        let detours: Vec<PathBuf> = detours.iter().map(|detour| root.join(detour)).collect();
        Some((root.join(below), detours))
    });
    let (path, detours) = outer.next().ok_or(PathError::Outside)?;
    let innermost = below_any(repositories, &path).min_by_key(|(.., below)| below.components().count());
    let (repository, root, below) = innermost.ok_or(PathError::Outside)?;
    // A detour that leads through another repository is not followed either.
    let detours = detours.iter().map(|detour| detour.strip_prefix(root).map(Path::to_path_buf));
    let detours = detours.collect::<Result<_, _>>().map_err(|_| PathError::Outside)?;
    Ok(AssignedPath { repository: repository.clone(), below: below.to_path_buf(), detours })
}

/// The repositories that `path` lies below as it is spelled: each with that spelling of its folder, and the
/// rest of the path, which is not empty.
fn below_any<'a, 'p>(
    repositories: impl Iterator<Item = &'a Repository>,
    path: &'p Path,
) -> impl Iterator<Item = (&'a Repository, &'a Path, &'p Path)> {
    let spelled = repositories.flat_map(|repository| repository.spellings().map(move |root| (repository, root)));
    // Whole components: /repo1/x is not below /repo.
    spelled.filter_map(move |(repository, root)| {
        let below = path.strip_prefix(root).ok()?;
        (!below.as_os_str().is_empty()).then_some((repository, root, below))
    })
}

/// The relative path without `..`, and the folders that it leads into and out of again; nothing where it
/// leads out altogether.
fn without_detours(path: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let (mut plain, mut detours) = (PathBuf::new(), Vec::new());
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                detours.push(plain.clone());
                if !plain.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!plain.as_os_str().is_empty()).then_some((plain, detours))
}

/// Opens a VM's disk in the repository whose folder is `root`.
///
/// The definition is a file that a guest's administrator may influence. So no link is followed below the
/// repository, and what is not a regular file is not opened.
///
/// # Errors
/// [`PathError`] with the reason.
pub fn open(root: &Folder, assigned: &AssignedPath) -> Result<LocatedDisk, PathError> {
    let AssignedPath { repository, below, detours } = assigned;
    check_disk_location(below)?;
    // `x/..` is nothing only where x is a folder: behind a link it leads elsewhere, and the guest's disk
    // would be another one than ours.
    for detour in detours {
        root.folder(detour)?;
    }
    let text = below.to_str().ok_or(PathError::NotText)?.to_owned();
    let name = below.file_name().ok_or(PathError::Outside)?;
    let folder = root.folder(below.parent().unwrap_or(Path::new("")))?;
    let file = folder.open_file(name)?;
    let size = file.metadata()?.len();
    let volume = volume::id_of(&file)?.map(VolumeId);
    Ok(LocatedDisk {
        repository: repository.clone(),
        source: DiskSource { repository: repository.id().clone(), path: text },
        file,
        location: (folder, name.to_owned()),
        path: repository.mount_point().join(below),
        size,
        volume,
    })
}

/// Refuses what a repository has besides the VMs' disks: what others' snapshots and definitions are in.
fn check_disk_location(below: &Path) -> Result<(), PathError> {
    let first = below.iter().next().unwrap_or_default();
    // At any depth: another repository may lie in this one, and not be known.
    if below.iter().any(|name| name == SNAPSHOTS) {
        Err(PathError::NoDisk("is in a folder of snapshots, where no VM has a disk"))
    } else if first.as_encoded_bytes().starts_with(b".") {
        Err(PathError::NoDisk("is hidden at the top of the repository, where no VM has a disk"))
    } else if below.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("cfg")) {
        Err(PathError::NoDisk("is a definition, and no disk"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "locate/tests.rs"]
mod tests;
