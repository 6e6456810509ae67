//! mallopt(3): how much freed memory the allocator keeps.
#![allow(unsafe_code)]

/// Keeps freed memory of up to `bytes` for what comes next: else each request of a few hundred KiB takes its
/// pages from the kernel and gives them back, which costs more than to fill them. Where the C library is not
/// glibc, this changes nothing.
pub fn retain(bytes: i32) {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        // SAFETY: the call takes two numbers, and changes what later calls of the allocator do.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, bytes);
            mallopt(M_MMAP_THRESHOLD, bytes);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}
