//! The backup directory's file system: clones, holes, and what is on stable storage.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};

use crate::sys::{reflink, sync};

/// Disks of VMs hold everyone's secrets.
pub const FILE_MODE: u32 = 0o600;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Creates a file that does not exist yet.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
}

pub fn open_or_create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
}

pub fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Writes a file so that a reader sees the old content or the new one, also after a power cut.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = temporary(path);
    remove_if_there(&new)?;
    let mut file = create_new(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// The name under which the file at `path` is made. No disk has a name with a leading dot.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_bytes()).to_hex();
    path.with_file_name(format!(".new-{}", &hash[..16]))
}

/// Gives a file its name, unless another has that name.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // The file system does not know the flag.
        Err(Errno::EINVAL | Errno::ENOSYS) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(Errno::EINVAL | Errno::ENOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        result => Ok(result?),
    }
}

pub fn sync_directory(path: &Path) -> io::Result<()> {
    sync::directory_at(path)
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the new file `target` share all blocks of `source`. Returns whether the file system can do that; if not, there
/// is no new file.
pub fn clone(source: &Path, target: &Path) -> io::Result<bool> {
    let from = File::open(source)?;
    let to = create_new(target)?;
    let error = match reflink::ficlone(from.as_fd(), to.as_fd()) {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    fs::remove_file(target)?;
    let cannot = |error: &io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        matches!(errno, Some(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL | Errno::EXDEV | Errno::ENOSYS))
    };
    if !cannot(&error) {
        return Err(error);
    }
    // Older kernels clone on OCFS2 by a call of its own.
    let c_path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    match reflink::ocfs2(from.as_fd(), &c_path(source)?, &c_path(target)?) {
        Ok(()) => Ok(true),
        Err(error) if cannot(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether files in `directory` can be cloned. Found out by cloning one.
pub fn can_clone(directory: &Path) -> io::Result<bool> {
    let trial = directory.join(".clone-trial");
    let copy = directory.join(".clone-trial-copy");
    remove_if_there(&trial)?;
    remove_if_there(&copy)?;
    create_new(&trial)?.write_all(&[1; 4096])?;
    let result = clone(&trial, &copy);
    remove_if_there(&trial)?;
    remove_if_there(&copy)?;
    result
}

/// Makes a range read as zeros, as a hole if the file system has holes. The range must end within the file.
pub fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| Errno::EOVERFLOW);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, offset(start)?, offset(end - start)?) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => write_zeros(file, start, end),
        result => Ok(result?),
    }
}

fn write_zeros(file: &File, mut start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; COPY_BYTES];
    while start < end {
        let length = (end - start).min(COPY_BYTES as u64) as usize;
        file.write_all_at(&zeros[..length], start)?;
        start += length as u64;
    }
    Ok(())
}

pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
