//! An open directory, and operations on names in it: openat(2) and its relatives.
//!
//! Others can write to a repository. Each path component is therefore looked up in a directory that is already open,
//! and symbolic links are not followed, so no one can redirect an access. openat2(2) would do this in one call, but the
//! kernels of the oldest supported hosts lack it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::sync;

/// The number of names that are listed of one directory. It bounds the memory.
const MAX_ENTRIES: usize = 1 << 18;

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Non-blocking: if a FIFO replaces the file between two calls, opening it must not block.
const FILE: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// An open directory.
#[derive(Clone, Debug)]
pub struct Folder {
    file: Arc<File>,
    /// Only for messages: the path that it was opened with.
    path: PathBuf,
}

/// A name below a folder has an unexpected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {problem}")]
pub struct UnexpectedEntry {
    pub name: OsString,
    pub problem: EntryProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// Following it could lead anywhere.
    #[error("is a symbolic link, which is not followed")]
    Link,
    /// A directory was expected.
    #[error("is not a folder")]
    NotAFolder,
    /// A regular file was expected. This is a directory, a device, a FIFO or a socket.
    #[error("is not a regular file")]
    NotAFile,
    /// The file has more bytes, or the directory more entries, than are read.
    #[error("is larger than {0}, and is not read")]
    TooLarge(usize),
}

impl UnexpectedEntry {
    /// The problem, if `error` is an [`UnexpectedEntry`].
    pub fn of(error: &io::Error) -> Option<EntryProblem> {
        Some(error.get_ref()?.downcast_ref::<Self>()?.problem)
    }

    fn error(name: &OsStr, problem: EntryProblem) -> io::Error {
        let kind = match problem {
            EntryProblem::Link | EntryProblem::NotAFile => io::ErrorKind::InvalidInput,
            EntryProblem::NotAFolder => io::ErrorKind::NotADirectory,
            EntryProblem::TooLarge(_) => io::ErrorKind::FileTooLarge,
        };
        io::Error::new(kind, Self { name: name.to_owned(), problem })
    }
}

impl Folder {
    /// Opens the directory at `path`. Links are followed: the operator names this path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::from(openat(AT_FDCWD, path, FOLDER, Mode::empty())?);
        Ok(Self { file: Arc::new(file), path: path.to_owned() })
    }

    /// Opens the directory at `below`, a relative path of plain names.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if a component is a link or not a directory; the errno of openat(2).
    pub fn folder(&self, below: impl AsRef<Path>) -> io::Result<Self> {
        let mut folder = self.clone();
        for component in below.as_ref().components() {
            let Component::Normal(name) = component else { return Err(not_plain()) };
            let opened = openat(&folder, name, FOLDER | OFlag::O_NOFOLLOW, Mode::empty());
            let file = opened.map_err(|errno| open_error(&folder, name, errno, EntryProblem::NotAFolder))?;
            folder = Self { file: Arc::new(file.into()), path: folder.path.join(name) };
        }
        Ok(folder)
    }

    /// Opens the regular file at `below` for reading. Any file that others may have created must be opened this way.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if the path leads to anything else, or through a link; the errno of openat(2).
    pub fn open_file(&self, below: impl AsRef<Path>) -> io::Result<File> {
        let (folder, name) = parent_of(self, below.as_ref())?;
        // Checked before it is opened, because opening a device can have effects.
        check_regular_file(&folder, name)?;
        let file = openat(&folder, name, FILE, Mode::empty());
        let file = File::from(file.map_err(|errno| open_error(&folder, name, errno, EntryProblem::NotAFile))?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)) }
    }

    /// Reads the regular file at `below`. It is refused if it has more than `limit` bytes, whatever size it reports.
    ///
    /// # Errors
    /// Those of [`Folder::open_file`]; [`UnexpectedEntry`] if there are more bytes.
    pub fn read_small(&self, below: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
        let below = below.as_ref();
        let mut bytes = Vec::new();
        self.open_file(below)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Err(UnexpectedEntry::error(below.file_name().unwrap_or_default(), EntryProblem::TooLarge(limit)));
        }
        Ok(bytes)
    }

    /// Creates the file `name` and opens it for reading and writing.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken, even by a link; the errno of openat(2).
    pub fn create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(self, plain(name.as_ref())?, flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// Opens the regular file `name` for reading and writing, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if the name is taken by anything else; the errno of openat(2).
    pub fn open_or_create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let name = plain(name.as_ref())?;
        // On a frozen file system, O_CREAT would block even if the file exists.
        match open_to_write(self, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match self.create_file(name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_to_write(self, name),
            made => made,
        }
    }

    /// Creates the directory `name`.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken, even by a link; the errno of mkdirat(2).
    pub fn create_folder(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
        Ok(mkdirat(self, plain(name.as_ref())?, Mode::from_bits_truncate(mode))?)
    }

    /// Removes the name of a file. If it is a link, the link's target stays.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(self, plain(name.as_ref())?, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes the empty directory `name`.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(self, plain(name.as_ref())?, UnlinkatFlags::RemoveDir)?)
    }

    /// Renames `from` to `to` in this directory. An existing `to` is replaced.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(renameat(self, plain(from.as_ref())?, self, plain(to.as_ref())?)?)
    }

    /// The names in the directory, unsorted.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if there are more than 262,144: a part must not be taken for the whole.
    pub fn entries(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        find_entry(self, |name| {
            if names.len() == MAX_ENTRIES {
                let own_name = self.path.file_name().unwrap_or_default();
                return Some(Err(UnexpectedEntry::error(own_name, EntryProblem::TooLarge(MAX_ENTRIES))));
            }
            names.push(name.to_owned());
            None
        })
        .unwrap_or(Ok(()))?;
        Ok(names)
    }

    pub fn is_empty(&self) -> io::Result<bool> {
        find_entry(self, |_| Some(Ok(false))).unwrap_or(Ok(true))
    }

    /// The metadata of `below`, or of the link itself if it is one. It is not opened.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if a component above it is a link or not a directory; the errno of openat(2).
    pub fn stat(&self, below: impl AsRef<Path>) -> io::Result<Metadata> {
        let (folder, name) = parent_of(self, below.as_ref())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        File::from(openat(&folder, name, flags, Mode::empty())?).metadata()
    }

    /// The metadata of the directory itself.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// The device number of the parent directory.
    pub fn outer_device(&self) -> io::Result<u64> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(self, "..", flags, Mode::empty())?).metadata()?.dev())
    }

    /// Sets the time of its last change to now, for those who watch it.
    pub fn touch(&self) -> io::Result<()> {
        self.file.set_modified(SystemTime::now())
    }

    /// As [`sync::directory`].
    pub fn sync(&self) -> io::Result<()> {
        sync::directory(&self.file)
    }

    /// Only for messages: the path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path according to the kernel, without links.
    pub fn resolved(&self) -> io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// A path to `name` through the open directory, for system calls that accept only paths. It is valid in this
    /// process while the folder is open.
    pub fn path_through(&self, name: impl AsRef<OsStr>) -> io::Result<CString> {
        let mut path = format!("/proc/self/fd/{}/", self.file.as_raw_fd()).into_bytes();
        path.extend_from_slice(plain(name.as_ref())?.as_bytes());
        Ok(CString::new(path)?)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_to_write(folder: &Folder, name: &OsStr) -> io::Result<File> {
    check_regular_file(folder, name)?;
    let file = openat(folder, name, FILE | OFlag::O_RDWR, Mode::empty());
    let file = File::from(file.map_err(|errno| open_error(folder, name, errno, EntryProblem::NotAFile))?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)) }
}

/// The directory of `below`, and its name there.
fn parent_of<'a>(folder: &Folder, below: &'a Path) -> io::Result<(Folder, &'a OsStr)> {
    let name = below.file_name().ok_or_else(not_plain)?;
    Ok((folder.folder(below.parent().unwrap_or(Path::new("")))?, name))
}

fn check_regular_file(folder: &Folder, name: &OsStr) -> io::Result<()> {
    match kind_of(folder, name)? {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFLNK => Err(UnexpectedEntry::error(name, EntryProblem::Link)),
        _ => Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)),
    }
}

fn kind_of(folder: &Folder, name: &OsStr) -> Result<SFlag, Errno> {
    let found = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()))
}

/// The error for an openat(2) of `name` that failed with `errno`. If the entry has another type than expected, the
/// error says so.
fn open_error(folder: &Folder, name: &OsStr, errno: Errno, expected: EntryProblem) -> io::Error {
    match errno {
        Errno::ELOOP | Errno::ENOTDIR => match kind_of(folder, name) {
            Ok(SFlag::S_IFLNK) => UnexpectedEntry::error(name, EntryProblem::Link),
            _ => UnexpectedEntry::error(name, expected),
        },
        // A socket, or a device without a driver.
        Errno::ENXIO | Errno::ENODEV => UnexpectedEntry::error(name, expected),
        errno => errno.into(),
    }
}

/// Calls `look` for each name until it returns something.
fn find_entry<T>(folder: &Folder, mut look: impl FnMut(&OsStr) -> Option<io::Result<T>>) -> Option<io::Result<T>> {
    // Opened again: the read position belongs to the descriptor, and others may list the directory at the same
    // time.
    let opened = openat(folder, ".", FOLDER, Mode::empty()).and_then(Dir::from_fd);
    let mut listing = match opened {
        Ok(listing) => listing,
        Err(errno) => return Some(Err(errno.into())),
    };
    for entry in listing.iter() {
        match entry {
            Err(errno) => return Some(Err(errno.into())),
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(entry) => {
                let found = look(OsStr::from_bytes(entry.file_name().to_bytes()));
                if found.is_some() {
                    return found;
                }
            }
        }
    }
    None
}

/// The path without links. Only the folders above its last component are accessed, so a file system that hangs there
/// does not block this.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// Whether the directory at `path` has a directory `name`. None of them is opened.
pub fn has_folder(path: &Path, name: &str) -> bool {
    path.join(name).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Refuses a name that is not exactly one component.
fn plain(name: &OsStr) -> io::Result<&OsStr> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(name),
        _ => Err(not_plain()),
    }
}

fn not_plain() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of its folder")
}

#[cfg(test)]
#[path = "folder/tests.rs"]
mod tests;
