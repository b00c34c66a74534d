//! Attach points: each builds its view of the packet or socket, calls the pipeline and converts the verdict.

#![no_std]
#![no_main]

mod maps;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use dataplane_common::NodeConfig;

/// Set by the loader before the programs are verified.
#[unsafe(no_mangle)]
static NODE_CONFIG: NodeConfig = NodeConfig::DEFAULT;

fn flags() -> u32 {
    unsafe { core::ptr::read_volatile(&raw const NODE_CONFIG.flags) }
}

#[classifier]
pub fn from_pod(_ctx: TcContext) -> i32 {
    if flags() == 0x1234 { 0 } else { TC_ACT_UNSPEC }
}
#[classifier]
pub fn to_pod(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[classifier]
pub fn from_uplink(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[classifier]
pub fn to_uplink(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeer4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeer6(_ctx: SockAddrContext) -> i32 {
    1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel checks before it hands out GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
