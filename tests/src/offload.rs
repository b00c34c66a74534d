//! What interfaces do for the stack, switched as `ethtool -K` does.

use std::{io, os::fd::AsRawFd as _};

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

/// Switches `feature` of the interface `device` of `netns`.
pub fn set(netns: &Netns, device: &str, feature: Feature, on: bool) -> Result<()> {
    let change = || -> io::Result<()> {
        // Any socket of the namespace will do.
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut value = Value { command: feature as u32, data: u32::from(on) };
        // SAFETY: the structure is made of integers, byte arrays and a pointer, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the kernel reads the request and the value that it points to, both of which outlive the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    netns.run(change)?.with_context(|| format!("cannot switch {feature:?} of {device} in {}", netns.name()))
}
