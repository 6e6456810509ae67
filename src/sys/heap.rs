//! mallopt(3): how much freed memory the allocator keeps.
#![allow(unsafe_code)]

/// Keeps up to `bytes` of freed memory for reuse. Without it, each request takes a few hundred KiB of pages from the
/// kernel and returns them, which costs more than filling them. With a C library other than glibc this has no effect.
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
