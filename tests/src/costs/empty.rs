//! Programs that do nothing, as the zero line for times and to switch XDP on: loaded and run by hand, since they are in no
//! object.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use aya_obj::generated::{XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};

/// `r0 = ...; exit` (RFC 9669: MOV with an immediate is 0xb7, EXIT is 0x95).
const CODE: [u8; 2] = [0xb7, 0x95];

/// The loaded program.
#[derive(Debug)]
pub(crate) struct Empty(OwnedFd);

impl Empty {
    /// Loads one for tc, which takes zero for "go on".
    pub(super) fn load() -> Result<Self> {
        Self::load_as(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0)
    }

    /// Loads one for XDP.
    pub(crate) fn load_xdp() -> Result<Self> {
        const XDP_PASS: i32 = 2;
        Self::load_as(bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS)
    }

    fn load_as(kind: bpf_prog_type, result: i32) -> Result<Self> {
        // SAFETY: the instruction is plain integers, for which zero is a value.
        let mut instructions: [bpf_insn; 2] = unsafe { std::mem::zeroed() };
        for (instruction, code) in instructions.iter_mut().zip(CODE) {
            instruction.code = code;
        }
        instructions[0].imm = result;
        // SAFETY: the attribute is a union of plain integers, for which zero is a value.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: all of the union is initialized; the kernel reads it as what the command says.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = kind as u32;
        load.insn_cnt = CODE.len() as u32;
        load.insns = instructions.as_ptr() as u64;
        load.license = c"GPL".as_ptr() as u64;
        let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("cannot load an empty program")?;
        // SAFETY: the kernel has just opened it, for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it to the driver of the interface `index` of the calling thread's network namespace until the link is closed.
    pub(crate) fn attach_xdp(&self, index: u32) -> Result<OwnedFd> {
        // SAFETY: as above.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let link = unsafe { &mut attr.link_create };
        link.__bindgen_anon_1.prog_fd = self.0.as_raw_fd().cast_unsigned();
        link.__bindgen_anon_2.target_ifindex = index;
        link.attach_type = bpf_attach_type::BPF_XDP as u32;
        link.flags = XDP_FLAGS_DRV_MODE;
        let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).context("cannot attach an empty program")?;
        // SAFETY: as above.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Runs it once on `frame`.
    pub(super) fn run(&self, frame: &[u8]) -> Result<Duration> {
        // SAFETY: as above.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let test = unsafe { &mut attr.test };
        test.prog_fd = self.0.as_raw_fd().cast_unsigned();
        test.repeat = 1;
        test.data_in = frame.as_ptr() as u64;
        test.data_size_in = u32::try_from(frame.len())?;
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).context("cannot run an empty program")?;
        // SAFETY: the kernel has filled in this part.
        let duration = unsafe { attr.test.duration };
        Ok(Duration::from_nanos(duration.into()))
    }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the pointer and the size are those of one attribute, whose own pointers outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
