//! The `sluice` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    dataplane_agent::cli::main()
}
