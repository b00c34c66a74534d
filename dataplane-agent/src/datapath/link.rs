//! Pinned BPF links: what they are attached to, and replacing their program in place.
//!
//! aya updates TCX links only and tells nobody what a link is attached to, so three `bpf(2)` commands are called directly.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_cmd;

/// A link opened from its pin. It stays attached when this value is dropped.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the kernel knows of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The link's id.
    pub id: u32,
    /// The id of its program.
    pub program: u32,
    /// For a TCX or XDP link the interface index, zero once the interface is gone.
    pub ifindex: u32,
    /// For a cgroup link the cgroup's id.
    pub cgroup: u64,
}

/// `BPF_LINK_TYPE_XDP`
const XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`
const TCX: u32 = 11;
/// `BPF_LINK_TYPE_CGROUP`
const CGROUP: u32 = 3;

/// The kernel's `union bpf_attr` as `BPF_OBJ_GET` reads it.
#[repr(C)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The kernel's `union bpf_attr` as `BPF_LINK_UPDATE` reads it.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The kernel's `union bpf_attr` as `BPF_OBJ_GET_INFO_BY_FD` reads it.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of the kernel's `struct bpf_link_info`, which ends in a union by type, aligned to eight bytes.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    // TCX and XDP: interface index (and for TCX the attach type); cgroup: the cgroup's id, low word first where the machine is little-endian.
    target: [u32; 2],
}

impl Link {
    /// Opens the link pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = ObjectGet { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
        let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
        // SAFETY: BPF_OBJ_GET returned a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What the link is attached to at this moment.
    pub fn state(&self) -> io::Result<LinkState> {
        let mut info = LinkInfo::default();
        let mut attr = InfoByFd {
            bpf_fd: self.0.as_raw_fd().cast_unsigned(),
            info_len: size_of::<LinkInfo>() as u32,
            info: (&raw mut info).expose_provenance() as u64,
        };
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        let [low, high] = info.target;
        let cgroup = u64::from_ne_bytes(concat(low.to_ne_bytes(), high.to_ne_bytes()));
        Ok(LinkState {
            id: info.id,
            program: info.prog_id,
            ifindex: if matches!(info.kind, TCX | XDP) { low } else { 0 },
            cgroup: if info.kind == CGROUP { cgroup } else { 0 },
        })
    }

    /// Replaces the link's program atomically: every packet meets the old one or the new one.
    ///
    /// `ENOLINK` means that what the link was attached to is gone.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkUpdate {
            link_fd: self.0.as_raw_fd().cast_unsigned(),
            new_prog_fd: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            old_prog_fd: 0,
        };
        bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(|_| ())
    }
}

fn concat([a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]) -> [u8; 8] {
    [a, b, c, d, e, f, g, h]
}

/// Calls `bpf(2)`.
fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `attr` within the size it is told, and what its fields point to (a C string, a
    // `LinkInfo` with its own size) is borrowed by the callers above for longer than the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
