//! Which system calls this process can make: seccomp(2).
//!
//! A call that is not listed fails with `ENOSYS`, as on a kernel without it. The C library and the crates of the
//! service know that answer and do without the call; `EPERM` would be a failure to them, and a killed process would
//! leave guests frozen. The kernel's audit log records such calls.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use nix::libc::{self, c_long, c_ulong};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Calls with any arguments. None of them starts a program, changes the owner of a file or the mode of one by its path,
/// attaches to another process, signals it or changes its priority, mounts, or loads code into the kernel.
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_utimensat,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_getcwd,
    libc::SYS_umask,
    // Network.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and signals.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Questions.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// Calls that the crate libc does not name on every architecture, and older forms of the calls above, which C libraries
/// still use.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_sync_file_range,
    libc::SYS_renameat,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[
    84, // sync_file_range
    38, // renameat
];

/// Requests of ioctl(2): clones, maps and the geometry of file systems; non-blocking and close-on-exec descriptors; the
/// send queue of a socket; whether a descriptor is a terminal, and its width.
const IOCTLS: [u64; 9] = [
    0x4004_9409, // FICLONE
    0xc020_660b, // FS_IOC_FIEMAP
    0x4018_6f04, // OCFS2_IOC_REFLINK
    XFS_GEOMETRY,
    0x5421, // FIONBIO
    0x5451, // FIOCLEX
    0x5411, // TIOCOUTQ
    0x5401, // TCGETS
    0x5413, // TIOCGWINSZ
];

/// `XFS_IOC_FSGEOMETRY_V1` of linux/xfs_fs.h, which all kernels have.
const XFS_GEOMETRY: u64 = 0x8070_5864;

/// Commands of fcntl(2): duplicates, flags, and the locks of the database. Others make the kernel send any signal to any
/// process, or hold up those that open a file.
const DESCRIPTOR_COMMANDS: [i32; 7] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
];

/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
const PRIORITY_OF_THREAD: u64 = 1;

/// The bits of the type in the second argument of socketpair(2). The others are flags.
const SOCKET_TYPE: u64 = 0xf;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// The value of an argument, of its lower 32 bits.
fn equals(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// The bits of `mask` in the lower 32 bits of an argument.
fn has_bits(argument: u8, mask: u64, bits: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), bits)
}

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let mut allow_if = |call: c_long, conditions: Vec<SeccompCondition>| -> Result<(), seccompiler::BackendError> {
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(())
    };
    // Connected stream sockets stay connected to each other. Datagram sockets could be connected to other programs.
    let stream = vec![equals(0, libc::AF_UNIX as u64)?, has_bits(1, SOCKET_TYPE, libc::SOCK_STREAM as u64)?];
    allow_if(libc::SYS_socketpair, stream)?;
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        allow_if(libc::SYS_socket, vec![equals(0, family as u64)?])?;
    }
    for request in IOCTLS {
        allow_if(libc::SYS_ioctl, vec![equals(1, request)?])?;
    }
    for command in DESCRIPTOR_COMMANDS {
        allow_if(libc::SYS_fcntl, vec![equals(1, command as u64)?])?;
    }
    // With O_ASYNC, the kernel sends signals.
    let without_signals = vec![equals(1, libc::F_SETFL as u64)?, has_bits(2, libc::O_ASYNC as u64, 0)?];
    allow_if(libc::SYS_fcntl, without_signals)?;
    // Of the calling thread.
    for call in [libc::SYS_ioprio_get, libc::SYS_ioprio_set] {
        allow_if(call, vec![equals(0, PRIORITY_OF_THREAD)?, equals(1, 0)?])?;
    }
    allow_if(libc::SYS_get_robust_list, vec![equals(0, 0)?])?;
    // Threads, but no processes. The flags of clone3 cannot be checked, so the C library has to use clone.
    let thread = libc::CLONE_THREAD as u64;
    allow_if(libc::SYS_clone, vec![has_bits(0, thread, thread)?])?;
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow_if(call, vec![has_bits(2, executable, 0)?])?;
    }
    allow_if(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME as u64)?])?;
    // Read the limits of this process, but do not change them.
    let no_new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    allow_if(libc::SYS_prlimit64, vec![no_new_limit])?;
    // abort(3).
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        allow_if(call, vec![equals(0, own)?])?;
    }
    Ok(rules)
}

/// Filters that refuse clone3 and Unix sockets, and the one that allows other calls. A call needs to pass all of them.
///
/// Unix sockets get the answer of a kernel without them, after which the C library looks names up in files only. Without
/// this filter, it could ask the programs of the host that listen at such sockets to do something.
fn programs() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let refused = || SeccompAction::Errno(libc::ENOSYS as u32);
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let clone3: Rules = [(libc::SYS_clone3, Vec::new())].into();
    let no_family = SeccompAction::Errno(libc::EAFNOSUPPORT as u32);
    let unix = SeccompRule::new(vec![equals(0, libc::AF_UNIX as u64)?])?;
    let sockets: Rules = [(libc::SYS_socket, vec![unix])].into();
    let others = rules()?.into_iter().chain(clone3.clone()).collect();
    Ok([
        SeccompFilter::new(sockets, SeccompAction::Allow, no_family, architecture)?.try_into()?,
        SeccompFilter::new(clone3, SeccompAction::Allow, refused(), architecture)?.try_into()?,
        SeccompFilter::new(others, refused(), SeccompAction::Allow, architecture)?.try_into()?,
    ])
}

/// Allows all threads of this process, and those that it starts later, only the calls that the service needs.
///
/// # Errors
/// The kernel's, as text.
pub fn restrict() -> Result<(), String> {
    let [unix, clone3, others] = programs().map_err(|error| error.to_string())?;
    // SAFETY: the call only changes a flag of this thread.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) } != 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    let quiet = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // The C library tries both in normal use, which the kernel would log: clone3 for each thread, and a Unix socket for
    // each user that is not in /etc/passwd.
    install(&unix, quiet)
        .and_then(|()| install(&clone3, quiet))
        .and_then(|()| {
            // The kernel logs calls since 4.14.
            install(&others, quiet | libc::SECCOMP_FILTER_FLAG_LOG).or_else(|_| install(&others, quiet))
        })
        .map_err(|error| error.to_string())
}

/// The crate's function does not let the kernel log.
fn install(program: &BpfProgram, flags: c_ulong) -> io::Result<()> {
    let length = program.len().try_into().map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the `length` instructions at `filter`, which has the kernel's layout, and changes
    // nothing. Both are borrowed for the call.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match failed {
        0 => Ok(()),
        // The id of a thread that could not get the filter.
        1.. => Err(io::Error::other(format!("the thread {failed} has another filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the kernel can filter calls.
pub fn is_supported() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the four bytes of `action`, or knows the question only since 4.14 and refuses it.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0 as c_ulong, &raw const action) };
    // SAFETY: the call takes no address.
    answer == 0 || unsafe { libc::prctl(libc::PR_GET_SECCOMP) } >= 0
}
