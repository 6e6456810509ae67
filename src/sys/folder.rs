//! An open directory, and all that is done below it: openat(2) and its relatives.
//!
//! Other people can write in a repository. So each name is looked up in a directory that is open already,
//! one component at a time, and no symbolic link is followed: nobody can make an access end anywhere else.
//! openat2(2) would do it in one call, but the kernels of the oldest hosts do not have it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Most names that are listed of one directory, so that a directory cannot take all memory.
const MAX_ENTRIES: usize = 1 << 18;

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Non-blocking: a pipe that takes the file's place between two calls must not hold up its opener.
const FILE: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// An open directory.
#[derive(Clone, Debug)]
pub struct Folder {
    file: Arc<File>,
    /// How it was reached, for messages alone.
    path: PathBuf,
}

/// Something below a folder that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {problem}")]
pub struct UnexpectedEntry {
    /// Its name.
    pub name: OsString,
    /// What it is instead.
    pub problem: EntryProblem,
}

/// What is wrong with something below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// Following it could lead anywhere.
    #[error("is a symbolic link, which is not followed")]
    Link,
    /// A directory was expected.
    #[error("is not a folder")]
    NotAFolder,
    /// A regular file was expected: this is a directory, a device, a pipe, a socket.
    #[error("is not a regular file")]
    NotAFile,
    /// A file has more bytes, or a directory more entries, than are read.
    #[error("is larger than {0}, and is not read")]
    TooLarge(usize),
}

impl UnexpectedEntry {
    /// What an error of a [`Folder`] says of the kind of what it met, where it is about that.
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
    /// Opens the directory at `path`, which the operator names: links in it are followed.
    ///
    /// # Errors
    /// The errno of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::from(openat(AT_FDCWD, path, FOLDER, Mode::empty())?);
        Ok(Self { file: Arc::new(file), path: path.to_owned() })
    }

    /// Opens the directory at `below`, a relative path of plain names.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where a part of the path is a link or is not a directory.
    pub fn folder(&self, below: impl AsRef<Path>) -> io::Result<Self> {
        let mut folder = self.clone();
        for component in below.as_ref().components() {
            let Component::Normal(name) = component else { return Err(not_plain()) };
            let opened = openat(&folder, name, FOLDER | OFlag::O_NOFOLLOW, Mode::empty());
            let file = opened.map_err(|errno| folder.open_error(name, errno, EntryProblem::NotAFolder))?;
            folder = Self { file: Arc::new(file.into()), path: folder.path.join(name) };
        }
        Ok(folder)
    }

    /// Opens the regular file at `below` for reading. This is the one way to open a file that somebody
    /// else may have made.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where it, or a part of its path, is anything else.
    pub fn open_file(&self, below: impl AsRef<Path>) -> io::Result<File> {
        let (folder, name) = self.parent_of(below.as_ref())?;
        // Looked at before it is opened: opening a device can do something.
        folder.check_regular_file(name)?;
        let file = openat(&folder, name, FILE, Mode::empty());
        let file = File::from(file.map_err(|errno| folder.open_error(name, errno, EntryProblem::NotAFile))?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)) }
    }

    /// Reads the regular file at `below`, which has at most `limit` bytes, whatever its size is said to be.
    ///
    /// # Errors
    /// As [`Folder::open_file`]; the errno of read(2); [`UnexpectedEntry`] where there is more.
    pub fn read_small(&self, below: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
        let below = below.as_ref();
        let mut bytes = Vec::new();
        self.open_file(below)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Err(UnexpectedEntry::error(below.file_name().unwrap_or_default(), EntryProblem::TooLarge(limit)));
        }
        Ok(bytes)
    }

    /// Makes the file `name` and opens it for reading and writing.
    ///
    /// # Errors
    /// The errno of openat(2): `EEXIST` where anything has that name, a link too.
    pub fn create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(self, plain(name.as_ref())?, flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// Opens the regular file `name` for reading and writing, and makes it where nothing has that name.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where it is anything else.
    pub fn open_or_create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let name = plain(name.as_ref())?;
        // To make it where it is there already would wait for a frozen file system.
        match self.open_to_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match self.create_file(name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_to_write(name),
            made => made,
        }
    }

    fn open_to_write(&self, name: &OsStr) -> io::Result<File> {
        self.check_regular_file(name)?;
        let file = openat(self, name, FILE | OFlag::O_RDWR, Mode::empty());
        let file = File::from(file.map_err(|errno| self.open_error(name, errno, EntryProblem::NotAFile))?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)) }
    }

    /// Makes the directory `name`.
    ///
    /// # Errors
    /// The errno of mkdirat(2): `EEXIST` where anything has that name, a link too.
    pub fn create_folder(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
        Ok(mkdirat(self, plain(name.as_ref())?, Mode::from_bits_truncate(mode))?)
    }

    /// Removes the name of a file. Where it is a link, the link goes, and what it leads to stays.
    ///
    /// # Errors
    /// The errno of unlinkat(2).
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(self, plain(name.as_ref())?, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes the empty directory `name`.
    ///
    /// # Errors
    /// The errno of unlinkat(2).
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(self, plain(name.as_ref())?, UnlinkatFlags::RemoveDir)?)
    }

    /// Gives `from` the name `to` in this directory, in place of what had it.
    ///
    /// # Errors
    /// The errno of renameat(2).
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(renameat(self, plain(from.as_ref())?, self, plain(to.as_ref())?)?)
    }

    /// The names in it, in no order.
    ///
    /// # Errors
    /// The errno of getdents(2); [`UnexpectedEntry`] where there are more than 262,144: a part is never taken for the
    /// whole.
    pub fn entries(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        self.find_entry(|name| {
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

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// The errno of getdents(2).
    pub fn is_empty(&self) -> io::Result<bool> {
        self.find_entry(|_| Some(Ok(false))).unwrap_or(Ok(true))
    }

    /// What is known of `below`: of the link itself, where it is one. It is not opened.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where a part of the path is a link or is not a directory.
    pub fn stat(&self, below: impl AsRef<Path>) -> io::Result<Metadata> {
        let (folder, name) = self.parent_of(below.as_ref())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        File::from(openat(&folder, name, flags, Mode::empty())?).metadata()
    }

    /// What is known of the directory itself.
    ///
    /// # Errors
    /// The errno of fstat(2).
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Number of the device that the directory above it lies on.
    ///
    /// # Errors
    /// The errno of openat(2).
    pub fn outer_device(&self) -> io::Result<u64> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(self, "..", flags, Mode::empty())?).metadata()?.dev())
    }

    /// Writes its entries to stable storage.
    ///
    /// # Errors
    /// The errno of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// How it was reached: for messages, and for nothing else.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the kernel says that it lies, every link followed.
    ///
    /// # Errors
    /// The errno of readlink(2).
    pub fn resolved(&self) -> io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// A path to `name` that leads through the open directory: for a system call that takes paths alone. It
    /// is good in this process, while the folder is open.
    ///
    /// # Errors
    /// Where the name is not plain.
    pub fn path_through(&self, name: impl AsRef<OsStr>) -> io::Result<CString> {
        let mut path = format!("/proc/self/fd/{}/", self.file.as_raw_fd()).into_bytes();
        path.extend_from_slice(plain(name.as_ref())?.as_bytes());
        Ok(CString::new(path)?)
    }

    /// The directory that `below` is in, and its name there.
    fn parent_of<'a>(&self, below: &'a Path) -> io::Result<(Self, &'a OsStr)> {
        let name = below.file_name().ok_or_else(not_plain)?;
        Ok((self.folder(below.parent().unwrap_or(Path::new("")))?, name))
    }

    fn check_regular_file(&self, name: &OsStr) -> io::Result<()> {
        match self.kind_of(name)? {
            SFlag::S_IFREG => Ok(()),
            SFlag::S_IFLNK => Err(UnexpectedEntry::error(name, EntryProblem::Link)),
            _ => Err(UnexpectedEntry::error(name, EntryProblem::NotAFile)),
        }
    }

    fn kind_of(&self, name: &OsStr) -> Result<SFlag, Errno> {
        let found = fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()))
    }

    /// The error of an openat(2) that expected something else than what has that `name`.
    fn open_error(&self, name: &OsStr, errno: Errno, expected: EntryProblem) -> io::Error {
        match errno {
            Errno::ELOOP | Errno::ENOTDIR => match self.kind_of(name) {
                Ok(SFlag::S_IFLNK) => UnexpectedEntry::error(name, EntryProblem::Link),
                _ => UnexpectedEntry::error(name, expected),
            },
            // A socket, or a device that has no driver.
            Errno::ENXIO | Errno::ENODEV => UnexpectedEntry::error(name, expected),
            errno => errno.into(),
        }
    }

    /// Goes through the names until `look` returns something.
    fn find_entry<T>(&self, mut look: impl FnMut(&OsStr) -> Option<io::Result<T>>) -> Option<io::Result<T>> {
        // Opened once more: the position is the descriptor's, and others may list it at the same time.
        let opened = openat(self, ".", FOLDER, Mode::empty()).and_then(Dir::from_fd);
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
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The path `path` with every link followed. Its parts are read as links, which asks the folders above it alone:
/// a file system that hangs at its end does not hold this up.
///
/// # Errors
/// The errno of realpath(3).
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// The name, where it is one component and nothing else.
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
