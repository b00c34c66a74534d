//! Attach points: each builds its view of the packet or socket, calls the pipeline and converts the verdict.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod affinity;
mod answer;
mod checksum;
mod clock;
mod config;
mod conntrack;
mod family;
mod forward;
mod fragments;
mod hook;
mod maps;
mod nat;
mod packet;
mod pipeline;
mod service;
mod socket;
mod verdict;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
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

/// Runs the stages for the packet's family; anything that is neither IPv4 nor IPv6 passes.
#[inline(always)]
fn run<H: Hook>(ctx: &TcContext) -> i32 {
    // The EtherType in network byte order, after any VLAN tags.
    match ctx.skb.protocol() as u16 {
        V4::ETHER_TYPE => pipeline::run::<H, V4>(ctx.skb.skb),
        V6::ETHER_TYPE => pipeline::run::<H, V6>(ctx.skb.skb),
        _ => Outcome::PASS.into_tc(),
    }
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
