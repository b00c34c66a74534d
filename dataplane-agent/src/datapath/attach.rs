//! What is attached to interfaces, and what came of attaching.

use std::{collections::BTreeMap, error::Error, fmt, io};

use aya::{
    Ebpf,
    programs::{ProgramError, SchedClassifier, tc::TcError},
};

use super::{hook::Hook, object::ObjectError};
use crate::model::device::Interface;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcMode {
    /// TCX where the kernel has it (since 6.6), clsact filters elsewhere.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl TcMode {
    /// What `Auto` means on this kernel.
    #[must_use]
    pub fn resolve(self) -> Self {
        match self {
            // A query tells more than a version: distributions take features back to older kernels.
            Self::Auto if SchedClassifier::query_tcx("lo", Hook::FromPod.direction()).is_ok() => Self::Tcx,
            Self::Auto => Self::Clsact,
            chosen => chosen,
        }
    }
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The hook.
    pub hook: Hook,
    /// The interface's index.
    pub ifindex: u32,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on interface {}", self.hook, self.ifindex)
    }
}

/// What one round of attaching did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Attached where there was nothing of ours.
    pub attached: Vec<Attachment>,
    /// Replaced in place.
    pub replaced: Vec<Attachment>,
    /// Removed: the interface is gone, or is no longer ours.
    pub detached: Vec<Attachment>,
    /// Not attached, and why; the next round tries again.
    pub failed: Vec<AttachError>,
}

impl Applied {
    /// Adds what `other` did.
    pub(super) fn append(&mut self, mut other: Self) {
        self.attached.append(&mut other.attached);
        self.replaced.append(&mut other.replaced);
        self.detached.append(&mut other.detached);
        self.failed.append(&mut other.failed);
    }
}

/// A program that could not be attached to an interface, or detached.
#[derive(Debug, thiserror::Error)]
#[error("{attachment}: {action} failed")]
pub struct AttachError {
    /// Where.
    pub attachment: Attachment,
    /// What was tried.
    pub action: &'static str,
    /// What the kernel said.
    pub source: Box<dyn Error + Send + Sync>,
}

impl AttachError {
    pub(super) fn new(
        attachment: Attachment,
        action: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { attachment, action, source: source.into() }
    }
}

/// The programs to have, by where.
pub(super) type Wanted<'a> = BTreeMap<Attachment, &'a Interface>;

/// The programs that `interfaces` should have.
pub(super) fn wanted(interfaces: &[Interface]) -> Wanted<'_> {
    interfaces
        .iter()
        .flat_map(|interface| {
            Hook::of(interface.role).map(|hook| (Attachment { hook, ifindex: interface.index }, interface))
        })
        .collect()
}

/// The program of `hook` in `ebpf`.
pub(super) fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, ObjectError> {
    ebpf.program_mut(hook.name()).and_then(|program| program.try_into().ok()).ok_or(ObjectError::NoProgram(hook.name()))
}

/// Ids of the loaded programs, to tell those that are attached from those of an earlier agent.
pub(super) fn program_ids(ebpf: &mut Ebpf) -> Result<BTreeMap<Hook, u32>, ObjectError> {
    Hook::TC
        .into_iter()
        .map(|hook| {
            let info = program(ebpf, hook)?.info();
            let info = info.map_err(|source| ObjectError::Program { program: hook.name(), source })?;
            Ok((hook, info.id()))
        })
        .collect()
}

/// Whether `error` means that the interface went away meanwhile, which is no failure.
pub(super) fn is_gone(error: &ProgramError) -> bool {
    let code = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        ProgramError::TcError(TcError::IoError(error)) | ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    };
    code.is_some_and(is_gone_code)
}

/// Whether an error code means that the interface went away.
pub(super) fn is_gone_code(code: i32) -> bool {
    matches!(code, libc::ENODEV | libc::ENXIO | libc::ENOLINK)
}

/// Removes a pin; one that is not there is no error.
pub(super) fn unpin(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
