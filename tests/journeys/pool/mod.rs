//! Two exporters on two hosts with one repository: two guests are a cluster with OCFS2 (`tests/pool`). One pair of guests
//! serves all scenarios, in order: a boot takes as long as all of the first ones.

mod agent;
mod hosts;
mod node;
mod scenarios;

use std::path::Path;
use std::time::Instant;

use crate::{needs, needs_root};
use hosts::Hosts;

#[test]
#[ignore = "the two guests need the machine for themselves: make pool"]
fn exporters_of_a_pool_do_not_harm_each_other() {
    needs_root!();
    needs!(cfg!(target_arch = "x86_64"), "an x86-64 host, whose programs the guests run");
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ocfs2");
    needs!(
        ["vmlinux", "initrd"].iter().all(|name| cache.join(name).exists()),
        "guests with OCFS2 (tests/ocfs2/prepare)"
    );
    let start = Instant::now();
    let mut hosts = Hosts::start();
    println!("{:6.1} s  both hosts run", start.elapsed().as_secs_f32());
    for (name, scenario) in scenarios::ALL {
        let begin = Instant::now();
        scenario(&mut hosts);
        println!("{:6.1} s  {name}: {:.1} s", start.elapsed().as_secs_f32(), begin.elapsed().as_secs_f32());
    }
    hosts.check_file_system();
    println!("{:6.1} s  the file system is clean", start.elapsed().as_secs_f32());
}
