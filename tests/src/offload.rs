//! What interfaces do for the stack, switched as `ethtool -K` does, and what they count, read as `ethtool -S` does.

use std::{ffi::CStr, io, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netns::Netns;

/// A feature of an interface: `ETHTOOL_STSO` and the like of `linux/ethtool.h`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Feature {
    /// Checksums of what is sent are left to the device.
    TransmitChecksum = 0x17,
    /// TCP hands segments down that the device cuts.
    Tso = 0x1f,
    /// The stack cuts them itself, last of all.
    Gso = 0x24,
    /// Segments that arrive are joined.
    Gro = 0x2c,
}

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Length of a counter's name with its end (`ETH_GSTRING_LEN`).
const NAME: usize = 32;
/// Room for counters: queues have some each, and a veth pair has as many queues as there are processors.
const MOST: usize = 4096;
/// The counters among the kernel's sets of names (`ETH_SS_STATS`).
const STATS: u32 = 1;

/// The kernel's `struct ethtool_sset_info`, asked for one set.
#[repr(C)]
struct SetSize {
    command: u32,
    reserved: u32,
    sets: u64,
    size: u32,
}

/// The kernel's `struct ethtool_gstrings`.
#[repr(C)]
struct Names {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME]; MOST],
}

/// The kernel's `struct ethtool_stats`.
#[repr(C)]
struct Counters {
    command: u32,
    count: u32,
    values: [u64; MOST],
}

/// Switches `feature` of the interface `device` of `netns`.
pub fn set(netns: &Netns, device: &str, feature: Feature, on: bool) -> Result<()> {
    let mut value = Value { command: feature as u32, data: u32::from(on) };
    netns
        .run(|| ask(device, &mut value))?
        .with_context(|| format!("cannot switch {feature:?} of {device} in {}", netns.name()))
}

/// The sum of the counters of the interface `device` of `netns` whose names end with `suffix`: each queue has its own.
pub fn count(netns: &Netns, device: &str, suffix: &str) -> Result<u64> {
    const GET_SIZES: u32 = 0x37;
    const GET_STRINGS: u32 = 0x1b;
    const GET_STATS: u32 = 0x1d;
    let read = || -> io::Result<u64> {
        let mut size = SetSize { command: GET_SIZES, reserved: 0, sets: 1 << STATS, size: 0 };
        ask(device, &mut size)?;
        let count = size.size;
        if count as usize > MOST {
            // The kernel writes them all, whatever the room.
            return Err(io::Error::other(format!("{count} counters")));
        }
        let mut names = Box::new(Names { command: GET_STRINGS, set: STATS, count, names: [[0; NAME]; MOST] });
        ask(device, &mut *names)?;
        let mut counters = Box::new(Counters { command: GET_STATS, count, values: [0; MOST] });
        ask(device, &mut *counters)?;
        let known = names.names.iter().zip(counters.values).take(count as usize);
        let named = known.filter(|(name, _)| {
            CStr::from_bytes_until_nul(&name[..]).is_ok_and(|name| name.to_bytes().ends_with(suffix.as_bytes()))
        });
        Ok(named.map(|(_, value)| value).sum())
    };
    netns.run(read)?.with_context(|| format!("cannot read the counters of {device} in {}", netns.name()))
}

/// Sends `command`, one of the kernel's structures for this, to the interface `device` of the calling thread's namespace.
fn ask<T>(device: &str, command: &mut T) -> io::Result<()> {
    // Any socket of the namespace will do.
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the structure is made of integers, byte arrays and a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
    // SAFETY: the kernel reads the request and reads and fills what it points to; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
