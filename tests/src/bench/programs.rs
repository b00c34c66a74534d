//! Programs of a few instructions, made and attached by hand: one that does nothing, a sink, and a source of packets.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya_obj::generated::{BPF_F_TEST_XDP_LIVE_FRAMES, bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

use crate::netns::Netns;

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// An attached program; closing it detaches.
#[derive(Debug)]
pub struct Link(#[expect(dead_code, reason = "held, and closed on drop")] OwnedFd);

/// Where a tc program is attached.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// What comes from the interface.
    Ingress,
    /// What goes to it.
    Egress,
}

/// One instruction (RFC 9669): code, registers, offset, constant.
const fn instruction(code: u8, destination: u8, source: u8, constant: i32) -> u64 {
    (code as u64) | ((source << 4 | destination) as u64) << 8 | (constant.cast_unsigned() as u64) << 32
}

/// The same with an offset, for loads, stores and jumps.
const fn at(offset: u8, instruction: u64) -> u64 {
    instruction | (offset as u64) << 16
}

const SET: u8 = 0xb7;
const EXIT: u64 = instruction(0x95, 0, 0, 0);
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const COPY: u8 = 0xbf;
const TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const RANDOM: i32 = 7;
const JUMP_IF_GREATER: u8 = 0x2d;
const LOAD_32: u8 = 0x61;
const STORE_16: u8 = 0x6b;
const STORE_64: u8 = 0x7b;
const STORE_CONSTANT_32: u8 = 0x62;
const LOAD_64: u8 = 0x18;
const ATOMIC_64: u8 = 0xdb;
/// The constant of a [`LOAD_64`] is a map, and the address that of its first value.
const MAP_VALUE: u8 = 2;

/// Bytes of the smallest Ethernet frame, without its checksum.
pub const SMALLEST: usize = 60;
/// Where UDP's source port stands behind IPv4 without options.
const SOURCE_PORT: u8 = 34;

/// "Not mine", which lets the next program and the stack have the packet.
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
const XDP_DROP: i32 = 1;
/// Send out of the interface that the frame came from.
const XDP_TX: i32 = 3;

impl Program {
    /// A tc program that does nothing.
    pub fn empty() -> Result<Self> {
        Self::load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, &[instruction(SET, 0, 0, TC_NEXT), EXIT])
    }

    /// A tc program that drops everything and counts it in `counter`.
    pub fn sink(counter: &Counter) -> Result<Self> {
        Self::load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, &counting(counter, TC_DROP))
    }

    /// An XDP program that does the same before there is a socket buffer.
    pub fn frame_sink(counter: &Counter) -> Result<Self> {
        Self::load(bpf_prog_type::BPF_PROG_TYPE_XDP, &counting(counter, XDP_DROP))
    }

    /// An XDP program that writes `frame`, a UDP packet in the smallest Ethernet frame, over every frame and sends it out; source ports
    /// are random ones out of `flows`, a power of two, from `port` on.
    ///
    /// The kernel uses the memory of frames again as it comes back, and a stack that they have passed has changed them.
    pub fn source(frame: &[u8; SMALLEST], port: u16, flows: u16) -> Result<Self> {
        let mut writes = Vec::new();
        let (words, rest) = frame.as_chunks::<8>();
        for (offset, word) in (0_u8..).step_by(8).zip(words) {
            let [low, high] = [&word[..4], &word[4..]].map(constant);
            writes.extend([instruction(LOAD_64, 5, 0, low), instruction(0, 0, 0, high)]);
            writes.push(at(offset, instruction(STORE_64, 2, 5, 0)));
        }
        writes.push(at(56, instruction(STORE_CONSTANT_32, 2, 0, constant(rest))));
        writes.push(at(SOURCE_PORT, instruction(STORE_16, 2, 0, 0)));
        let mut code = vec![
            instruction(COPY, 6, 1, 0),
            instruction(CALL, 0, 0, RANDOM),
            instruction(AND, 0, 0, i32::from(flows - 1)),
            instruction(ADD, 0, 0, port.into()),
            instruction(TO_BIG_ENDIAN, 0, 0, 16),
            // `struct xdp_md` begins with data and data_end.
            at(0, instruction(LOAD_32, 2, 6, 0)),
            at(4, instruction(LOAD_32, 3, 6, 0)),
            instruction(COPY, 4, 2, 0),
            instruction(ADD, 4, 0, i32::try_from(SMALLEST)?),
            at(u8::try_from(writes.len())?, instruction(JUMP_IF_GREATER, 4, 3, 0)),
        ];
        code.extend(writes);
        code.extend([instruction(SET, 0, 0, XDP_TX), EXIT]);
        Self::load(bpf_prog_type::BPF_PROG_TYPE_XDP, &code)
    }

    fn load(kind: bpf_prog_type, code: &[u64]) -> Result<Self> {
        let mut attr = zeroed();
        // SAFETY: all of the union is initialized; the kernel reads it as what the command says.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = kind as u32;
        load.insn_cnt = u32::try_from(code.len())?;
        load.insns = code.as_ptr() as u64;
        load.license = c"GPL".as_ptr() as u64;
        Ok(Self(open(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("cannot load a program")?))
    }

    /// Attaches a tc program to the interface `name` of `netns`, behind those that are there.
    pub fn attach(&self, netns: &Netns, name: &str, side: Side) -> Result<Link> {
        let create = || {
            let index = nix::net::if_::if_nametoindex(name)?;
            let mut attr = zeroed();
            // SAFETY: as in `load`.
            let link = unsafe { &mut attr.link_create };
            link.__bindgen_anon_1.prog_fd = self.0.as_raw_fd().cast_unsigned();
            link.__bindgen_anon_2.target_ifindex = index;
            link.attach_type = match side {
                Side::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
                Side::Egress => bpf_attach_type::BPF_TCX_EGRESS,
            } as u32;
            open(bpf_cmd::BPF_LINK_CREATE, &mut attr)
        };
        let link = netns.run(create)?.with_context(|| format!("cannot attach to {name} of {}", netns.name()))?;
        Ok(Link(link))
    }

    /// Puts the program in the place of the one that `link` has attached.
    pub fn replace(&self, link: &OwnedFd) -> Result<()> {
        let mut attr = zeroed();
        // SAFETY: as in `load`.
        let update = unsafe { &mut attr.link_update };
        update.link_fd = link.as_raw_fd().cast_unsigned();
        update.__bindgen_anon_1.new_prog_fd = self.0.as_raw_fd().cast_unsigned();
        call(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop).context("cannot replace a program")
    }

    /// Runs an XDP program on `count` copies of `frame` that are real: those that it sends out leave through the interface `name`.
    pub fn send(&self, netns: &Netns, name: &str, frame: &[u8], count: u32) -> Result<()> {
        let run = || -> io::Result<()> {
            let size = u32::try_from(frame.len()).map_err(io::Error::other)?;
            // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let context = [0, size, 0, nix::net::if_::if_nametoindex(name)?, 0, 0];
            let mut attr = zeroed();
            // SAFETY: as in `load`.
            let test = unsafe { &mut attr.test };
            test.prog_fd = self.0.as_raw_fd().cast_unsigned();
            test.data_in = frame.as_ptr() as u64;
            test.data_size_in = size;
            test.ctx_in = context.as_ptr() as u64;
            test.ctx_size_in = size_of_val(&context).try_into().map_err(io::Error::other)?;
            test.repeat = count;
            test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
            call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
        };
        netns.run(run)?.with_context(|| format!("cannot send frames from {name} of {}", netns.name()))
    }
}

/// The code that counts in `counter` and ends with `verdict`.
fn counting(counter: &Counter, verdict: i32) -> [u64; 6] {
    [
        instruction(LOAD_64, 1, MAP_VALUE, counter.0.as_raw_fd()),
        0,
        instruction(SET, 2, 0, 1),
        instruction(ATOMIC_64, 1, 2, 0),
        instruction(SET, 0, 0, verdict),
        EXIT,
    ]
}

/// A number that a program counts up.
#[derive(Debug)]
pub struct Counter(OwnedFd);

impl Counter {
    /// Zero.
    pub fn new() -> Result<Self> {
        let mut attr = zeroed();
        // SAFETY: as in `Program::load`.
        let map = unsafe { &mut attr.__bindgen_anon_1 };
        map.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        (map.key_size, map.value_size, map.max_entries) = (4, 8, 1);
        Ok(Self(open(bpf_cmd::BPF_MAP_CREATE, &mut attr).context("cannot create a map")?))
    }

    /// What has been counted.
    pub fn read(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = zeroed();
        // SAFETY: as in `Program::load`.
        let lookup = unsafe { &mut attr.__bindgen_anon_2 };
        lookup.map_fd = self.0.as_raw_fd().cast_unsigned();
        lookup.key = std::ptr::from_ref(&key) as u64;
        lookup.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
        call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).context("cannot read a counter")?;
        Ok(value)
    }
}

/// The constant whose four bytes in memory are `bytes`.
fn constant(bytes: &[u8]) -> i32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | i32::from(*byte))
}

fn zeroed() -> bpf_attr {
    // SAFETY: the attribute is a union of plain integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn open(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the kernel has just opened it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the pointer and the size are those of one attribute, whose own pointers outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
