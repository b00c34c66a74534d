//! Frames that are sent as they are, past a namespace's own protocol stack.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket},
};

use crate::netns::Netns;

/// Sends `frame` out of `device`, to whoever has the hardware address `to`; the frame's own one is replaced.
pub fn send(netns: &Netns, device: &str, to: [u8; 6], frame: &[u8]) -> Result<()> {
    ensure!(frame.len() >= 14, "a frame of {} bytes", frame.len());
    let frame = [&to, &frame[6..]].concat();
    let sent = netns.run(|| -> Result<usize> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let index = if_nametoindex(device).with_context(|| format!("no {device}"))?;
        Ok(sendto(socket.as_raw_fd(), &frame, &interface(index)?, MsgFlags::empty())?)
    })??;
    ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
    Ok(())
}

/// The address of everything behind the interface `index`: frames have their own headers.
fn interface(index: u32) -> Result<LinkAddr> {
    let family = u16::try_from(libc::AF_PACKET)?;
    let addr = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = u32::try_from(size_of_val(&addr))?;
    // SAFETY: the pointer is to a whole `sockaddr_ll` of this length, and is copied from at once.
    let link = unsafe { LinkAddr::from_raw((&raw const addr).cast(), Some(size)) };
    link.context("an address of another family")
}
