//! A program that does nothing, as the zero line for times: loaded and run by hand, since it is in no object.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};

/// `r0 = 0; exit` (RFC 9669: MOV with an immediate is 0xb7, EXIT is 0x95), which tc takes for "go on".
const CODE: [u8; 2] = [0xb7, 0x95];

/// The loaded program.
#[derive(Debug)]
pub(super) struct Empty(OwnedFd);

impl Empty {
    /// Loads it.
    pub(super) fn load() -> Result<Self> {
        // SAFETY: the instruction is plain integers, for which zero is a value.
        let mut instructions: [bpf_insn; 2] = unsafe { std::mem::zeroed() };
        for (instruction, code) in instructions.iter_mut().zip(CODE) {
            instruction.code = code;
        }
        // SAFETY: the attribute is a union of plain integers, for which zero is a value.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: all of the union is initialized; the kernel reads it as what the command says.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
        load.insn_cnt = CODE.len() as u32;
        load.insns = instructions.as_ptr() as u64;
        load.license = c"GPL".as_ptr() as u64;
        let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("cannot load an empty program")?;
        // SAFETY: the kernel has just opened it, for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
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
