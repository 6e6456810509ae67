//! How much freed memory the allocator keeps: mallopt(3), malloc_trim(3). With a C library other than glibc, these
//! functions have no effect.
#![allow(unsafe_code)]

/// Keeps up to `bytes` of freed memory for reuse. Without it, each request takes a few hundred KiB of pages from the
/// kernel and returns them, which costs more than filling them.
pub fn retain(bytes: i32) {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        // SAFETY: the call takes two numbers, and changes only how later calls of the allocator behave.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, bytes);
            mallopt(M_MMAP_THRESHOLD, bytes);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Returns freed memory to the kernel, wherever it lies. The allocator itself returns only what lies at the end of one of
/// its many areas, so after a busy time it would keep tens of MiB.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and changes no memory that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
