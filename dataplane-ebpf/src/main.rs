//! Attach points: each builds its view of the packet or socket, calls the pipeline and converts the verdict.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod affinity;
mod answer;
mod arrangement;
mod checksum;
mod clock;
mod config;
mod conntrack;
mod direct;
mod family;
mod forward;
mod fragments;
mod hook;
mod maps;
mod nat;
mod packet;
mod pairs;
mod pipeline;
mod service;
mod socket;
mod verdict;
mod way;
mod xdp;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use dataplane_common::{V4, V6};

use crate::{
    family::Datapath,
    hook::{FromPod, FromUplink, Hook, ToPod, ToUplink},
    socket::{Inet, Inet6, Mapped, is_mapped},
    verdict::Outcome,
};

/// tc ingress of a pod's host-side interface.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run::<FromPod>(&ctx)
}

/// tc egress of a pod's host-side interface.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run::<ToPod>(&ctx)
}

/// tc ingress of an uplink.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    run::<FromUplink>(&ctx)
}

/// tc egress of an uplink.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    run::<ToUplink>(&ctx)
}

/// XDP in the driver of an uplink, before `from_uplink`.
// Programs for frames in several buffers attach at every MTU.
#[xdp(frags)]
pub fn xdp_from_uplink(ctx: XdpContext) -> u32 {
    xdp::run::<false>(ctx.ctx)
}

/// Generic XDP on an uplink, before `from_uplink`.
// Not for frames in several buffers: for such a program the kernel copies packets and forgets where their network header is,
// and tc programs behind it read nonsense (seen on 6.18).
#[xdp]
pub fn xdp_generic(ctx: XdpContext) -> u32 {
    xdp::run::<true>(ctx.ctx)
}

/// Runs the stages for the packet's family; anything that is neither IPv4 nor IPv6 passes.
#[inline(always)]
fn run<H: Hook>(ctx: &TcContext) -> i32 {
    if is_in_vlan(ctx) {
        return Outcome::PASS.into_tc();
    }
    // The EtherType in network byte order, after the tag that the kernel has taken out of the frame.
    match ctx.skb.protocol() as u16 {
        V4::ETHER_TYPE => pipeline::run::<H, V4>(ctx.skb.skb),
        V6::ETHER_TYPE => pipeline::run::<H, V6>(ctx.skb.skb),
        _ => Outcome::PASS.into_tc(),
    }
}

/// Whether the packet belongs to a VLAN, and so to the VLAN's own interface on top of this one, whose programs see it without
/// the tag. Sent around the stack from here, it would take the tag along to where nobody expects it.
///
/// A tag of VLAN 0 only says a priority (IEEE 802.1Q, 9.6), and the stack takes such a packet for this interface's own.
#[inline(always)]
fn is_in_vlan(ctx: &TcContext) -> bool {
    const VLAN_ID: u32 = 0xfff;
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).vlan_present != 0 && (*ctx.skb.skb).vlan_tci & VLAN_ID != 0 }
}

/// `connect(2)` of `AF_INET` sockets.
#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(ctx: SockAddrContext) -> i32 {
    socket::connect::<Inet>(&ctx)
}

/// `connect(2)` of `AF_INET6` sockets.
#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { socket::connect::<Mapped>(&ctx) } else { socket::connect::<Inet6>(&ctx) }
}

/// `sendmsg(2)` of `AF_INET` sockets that are not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::send::<Inet>(&ctx)
}

/// `sendmsg(2)` of `AF_INET6` sockets that are not connected.
#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { socket::send::<Mapped>(&ctx) } else { socket::send::<Inet6>(&ctx) }
}

/// `recvmsg(2)` of `AF_INET` sockets.
#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<Inet>(&ctx)
}

/// `recvmsg(2)` of `AF_INET6` sockets.
#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { socket::show_frontend::<Mapped>(&ctx) } else { socket::show_frontend::<Inet6>(&ctx) }
}

/// `getpeername(2)` of `AF_INET` sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeer4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<Inet>(&ctx)
}

/// `getpeername(2)` of `AF_INET6` sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeer6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { socket::show_frontend::<Mapped>(&ctx) } else { socket::show_frontend::<Inet6>(&ctx) }
}

/// Unreachable: nothing in these programs panics, and the verifier would refuse the endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
