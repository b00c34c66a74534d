//! The emulator, and the shell inside it: what is installed here, or unpacked beside the kernels.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    setup::{self, apt},
    workspace,
};

/// Programs, and the packages they are in.
const TOOLS: [(&str, &str); 2] = [(EMULATOR, "qemu-system-x86"), (SHELL, "busybox-static")];
const EMULATOR: &str = "qemu-system-x86_64";
const SHELL: &str = "busybox";

pub(super) struct Tools {
    emulator: PathBuf,
    /// A shell and everything that scripts call, in one static program.
    pub(super) shell: PathBuf,
    /// Where packages are unpacked.
    unpacked: PathBuf,
}

impl Tools {
    /// Finds the tools, and fetches what is missing. They are not installed, since the emulator's packages of another version than some
    /// installed relative would not let that be.
    pub(super) fn obtain() -> Result<Self> {
        let unpacked = workspace::target().join("kernels/tools");
        let missing = TOOLS.iter().filter(|(program, _)| setup::find(program).is_none());
        let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
        if !missing.is_empty() && !unpacked.exists() {
            let packages = apt::with_missing(&missing)?;
            apt::unpack(&packages.iter().map(String::as_str).collect::<Vec<_>>(), &unpacked)?;
        }
        let find = |program: &str| {
            let folders = ["usr/bin", "bin"].map(|folder| unpacked.join(folder).join(program));
            let path = setup::find(program).or_else(|| folders.into_iter().find(|path| path.is_file()));
            path.with_context(|| format!("there is no {program} here, and none in {}", unpacked.display()))
        };
        Ok(Self { emulator: find(EMULATOR)?, shell: find(SHELL)?, unpacked })
    }

    /// The command that runs the emulator.
    pub(super) fn emulator(&self) -> Command {
        let mut command = Command::new(&self.emulator);
        if self.emulator.starts_with(&self.unpacked) {
            let folders = ["usr/lib", "lib"].map(|folder| self.unpacked.join(folder).join("x86_64-linux-gnu"));
            if let Ok(folders) = env::join_paths(folders) {
                command.env("LD_LIBRARY_PATH", folders);
            }
            for data in ["usr/share/qemu", "usr/share/seabios"].map(|folder| self.unpacked.join(folder)) {
                command.args([Path::new("-L"), &data]);
            }
        }
        command
    }
}
