//! The programs attached to a cgroup, which aya does not list.

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};

/// More programs than a cgroup takes at one hook (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// The hooks that translate sockets, by the names of our programs.
pub(super) const HOOKS: [(&str, bpf_attach_type); 8] = [
    ("connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    ("connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    ("sendmsg4", bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    ("recvmsg4", bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG),
    ("recvmsg6", bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    ("getpeername4", bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
];

/// Ids of the programs attached to `cgroup` itself at `hook`.
pub(super) fn programs(cgroup: &Path, hook: bpf_attach_type) -> io::Result<Vec<u32>> {
    let directory = File::open(cgroup)?;
    let mut ids = vec![0; MOST];
    let count = query(directory.as_raw_fd(), hook, &mut ids)?;
    ids.truncate(count);
    Ok(ids)
}

fn query(cgroup: RawFd, hook: bpf_attach_type, ids: &mut [u32]) -> io::Result<usize> {
    // SAFETY: `bpf_attr` is a union of integers, for which all zero bytes are valid.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.query.__bindgen_anon_1.target_fd = cgroup.cast_unsigned();
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    let command = bpf_cmd::BPF_PROG_QUERY as u32;
    // SAFETY: the kernel writes at most `prog_cnt` ids to `prog_ids`, which the caller's slice has room for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written the count into this member, which is an integer.
    Ok(unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize)
}
