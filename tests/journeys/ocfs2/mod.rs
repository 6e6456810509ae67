//! Tests on OCFS2: this test program runs again in a guest whose kernel supports OCFS2 (`tests/ocfs2/boot`).

mod guest;

use std::path::Path;
use std::process::Command;

use crate::{needs, needs_root};

#[test]
fn tests_pass_on_ocfs2() {
    needs_root!();
    needs!(cfg!(target_arch = "x86_64"), "an x86-64 host, whose programs the guest runs");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let prepared = here.join("target/ocfs2/vmlinux").exists() && here.join("target/ocfs2/initrd").exists();
    needs!(prepared, "a guest with OCFS2 (tests/ocfs2/prepare)");
    let mut boot = Command::new(here.join("tests/ocfs2/boot"));
    boot.arg(std::env::current_exe().unwrap());
    boot.args(["--ignored", "--test-threads", "2", "--show-output", "ocfs2::guest::"]);
    let output = boot.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("---- the guest ----\n{printed}");
    let ran = output.status.success() && !printed.contains(" 0 passed");
    assert!(ran, "the tests in the guest failed: {}", output.status);
}
