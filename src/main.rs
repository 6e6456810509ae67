//! The binary; the program is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    coriolis_ovm_exporter::main()
}
