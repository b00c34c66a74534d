//! Programs by id: what the kernel tells of them, and which are ours.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use aya::programs::{ProgramInfo, loaded_programs};

use crate::datapath::Pins;

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name, at most 15 characters of it.
    pub name: String,
    /// A hash of its instructions, in hexadecimal as bpftool writes it.
    pub tag: String,
}

impl Program {
    fn new(program: &ProgramInfo) -> Self {
        Self { name: String::from_utf8_lossy(program.name()).into_owned(), tag: format!("{:016x}", program.tag()) }
    }
}

/// Every program that the kernel has, by id.
pub fn loaded() -> anyhow::Result<BTreeMap<u32, Program>> {
    let mut programs = BTreeMap::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => {
                programs.insert(program.id(), Program::new(&program));
            }
            // Unloaded between its id and its description.
            Err(aya::programs::ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("cannot list the loaded programs"),
        }
    }
    Ok(programs)
}

/// The programs that sluice has pinned below `bpffs`, by id.
pub fn pinned(bpffs: &Path) -> anyhow::Result<BTreeMap<u32, Program>> {
    let directory = Pins::new(bpffs).programs();
    let mut programs = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(&directory) else { return Ok(programs) };
    for entry in entries {
        let path = entry.with_context(|| directory.display().to_string())?.path();
        let program = ProgramInfo::from_pin(&path).with_context(|| path.display().to_string())?;
        programs.insert(program.id(), Program::new(&program));
    }
    Ok(programs)
}
