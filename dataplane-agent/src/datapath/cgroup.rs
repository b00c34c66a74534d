//! The programs that translate at connect time: attached to a cgroup, pinned, and replaced in place.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, links::FdLink},
};
use nix::{
    getsockopt_impl, sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
};

use super::{attach::unpin, hook::CGROUP_PROGRAMS, link::Link, object::ObjectError, pin::Pins};

/// Whose sockets are translated at connect time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SocketLb {
    /// Nobody's: every packet of the node's own processes goes through the programs of its interfaces.
    Off,
    /// Those of processes in the node's network namespace: pods' sidecars of a service mesh see the addresses that were asked for.
    #[default]
    Host,
    /// Those of every process, also in pods: not for service meshes.
    All,
}

/// Why a cgroup program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup cannot be opened.
    #[error("{}: the cgroup cannot be opened", path.display())]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The object is not as it should be.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Attaching failed.
    #[error("{program} cannot be attached to {}", cgroup.display())]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The pin of a link is in the way, or cannot be made.
    #[error("{}: {action} failed", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

sockopt_impl!(
    /// The cookie of a socket's network namespace (since 5.14).
    NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64
);

/// The cookie of the network namespace of the calling thread.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}

/// The cgroup program `name` of `ebpf`.
pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, ObjectError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(ObjectError::NoProgram(name))
}

/// Has the programs run for the processes of `cgroup`, and of that cgroup only.
pub(super) fn attach_all(ebpf: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<(), CgroupError> {
    let open = |source| CgroupError::Open { path: cgroup.to_owned(), source };
    let directory = File::open(cgroup).map_err(open)?;
    let id = directory.metadata().map_err(open)?.ino();
    for name in CGROUP_PROGRAMS {
        let path = pins.cgroup_link(name);
        let program = program(ebpf, name)?;
        if adopt(&path, id, program)? {
            continue;
        }
        let refused = |source| CgroupError::Attach { program: name, cgroup: cgroup.to_owned(), source };
        // Links always stand beside those of others; the flag that says so is refused with them.
        let link = program.attach(&directory, CgroupAttachMode::Single).map_err(refused)?;
        let link = program.take_link(link).map_err(refused)?;
        let pin = |source| CgroupError::Pin { path: path.clone(), action: "pinning the link", source };
        let link = FdLink::try_from(link).map_err(|error| pin(error.into()))?;
        link.pin(&path).map_err(|error| pin(error.into()))?;
    }
    Ok(())
}

/// Replaces the program of the link at `path`, if there is one and it is the cgroup's; removes any other.
fn adopt(path: &Path, cgroup: u64, program: &CgroupSockAddr) -> Result<bool, CgroupError> {
    let failed = |action, source: Box<dyn std::error::Error + Send + Sync>| CgroupError::Pin {
        path: path.to_owned(),
        action,
        source,
    };
    let link = match Link::open(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("opening the link", error.into())),
    };
    let state = link.state().map_err(|error| failed("reading the link", error.into()))?;
    if state.cgroup == cgroup {
        let fd = program.fd().map_err(|error| failed("finding the program", error.into()))?;
        match link.update(fd.as_fd()) {
            Ok(()) => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(failed("replacing the program", error.into())),
        }
    }
    unpin(path).map_err(|error| failed("removing the pin", error.into()))?;
    Ok(false)
}

/// Detaches the programs; returns the names of those that were attached.
pub(super) fn remove_all(pins: &Pins) -> io::Result<Vec<&'static str>> {
    let mut removed = Vec::new();
    for name in CGROUP_PROGRAMS {
        let path = pins.cgroup_link(name);
        if path.try_exists()? {
            unpin(&path)?;
            removed.push(name);
        }
    }
    Ok(removed)
}
