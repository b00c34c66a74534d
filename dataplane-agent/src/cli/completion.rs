//! `sluice completion`: a script that completes commands and flags.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};

/// Options of `sluice completion`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Completion {
    /// The shell to write for
    pub shell: Shell,
}

/// Prints the script for a shell.
pub fn run(args: Completion) -> anyhow::Result<()> {
    // Into memory first: the generator panics when standard output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sluice", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
