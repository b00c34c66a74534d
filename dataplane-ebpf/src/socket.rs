//! Translation at connect time: sockets of this node's processes talk to backends directly, and no packet is rewritten.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use dataplane_common::{
    Addr as _, BePort, Family, NodeConfig, Protocol, SocketKey, SocketOrigin, V4, V6, map::local_addr,
};

use crate::{
    config,
    family::Datapath,
    maps::{Table as _, count_drop},
    service::{self, Client, Selected},
    verdict::Step,
};

/// The node's own sockets reach NodePorts on loopback too.
const NODE_PORT_ON: u32 = local_addr::NODE_PORT | local_addr::LOOPBACK;

/// Lets the system call go on.
const ALLOW: i32 = 1;
/// Ends the system call with the value given to `bpf_set_retval`.
const DENY: i32 = 0;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

type Addr<P> = <<P as Place>::Family as Family>::Addr;

/// Where a socket address keeps an address of which family.
pub trait Place {
    /// The family that is looked up.
    type Family: Datapath;

    fn read(ctx: &SockAddrContext) -> Addr<Self>;
    fn write(ctx: &SockAddrContext, addr: Addr<Self>);
}

/// An IPv4 address of an `AF_INET` socket.
pub struct Inet;
/// An IPv6 address of an `AF_INET6` socket.
pub struct Inet6;
/// An IPv4-mapped address (RFC 4291, 2.5.5.2) of an `AF_INET6` socket.
pub struct Mapped;

impl Place for Inet {
    type Family = V4;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u32; 1] {
        // SAFETY: the context is valid while the program runs.
        [unsafe { (*ctx.sock_addr).user_ip4 }]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 1]) {
        // SAFETY: as above; the kernel lets these programs write the field.
        unsafe { (*ctx.sock_addr).user_ip4 = addr[0] };
    }
}

impl Place for Inet6 {
    type Family = V6;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u32; 4] {
        [word(ctx, 0), word(ctx, 1), word(ctx, 2), word(ctx, 3)]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 4]) {
        set_word(ctx, 0, addr[0]);
        set_word(ctx, 1, addr[1]);
        set_word(ctx, 2, addr[2]);
        set_word(ctx, 3, addr[3]);
    }
}

impl Place for Mapped {
    type Family = V4;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u32; 1] {
        [word(ctx, 3)]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 1]) {
        set_word(ctx, 3, addr[0]);
    }
}

/// A word of the IPv6 address. Volatile: the kernel takes each access as it stands and knows no wider or merged ones.
#[inline(always)]
fn word(ctx: &SockAddrContext, index: usize) -> u32 {
    // SAFETY: the context is valid while the program runs, and callers pass constants below four.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[index]) }
}

#[inline(always)]
fn set_word(ctx: &SockAddrContext, index: usize, value: u32) {
    // SAFETY: as in `word`; the kernel lets these programs write the field.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[index], value) };
}

/// Whether an `AF_INET6` socket's address is an IPv4-mapped one.
#[inline(always)]
pub fn is_mapped(ctx: &SockAddrContext) -> bool {
    word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == 0xffff_u32.to_be()
}

/// `connect(2)`: a frontend becomes one of its backends, for as long as the socket lives.
#[inline(always)]
pub fn connect<P: Place>(ctx: &SockAddrContext) -> i32 {
    translate::<P>(ctx, |frontend| {
        // SAFETY: the helper has no preconditions.
        service::select_by::<P::Family>(frontend, Client::Inside, &Addr::<P>::ZERO, unsafe { bpf_get_prandom_u32() })
    })
}

/// `sendmsg(2)` of a socket that is not connected: the same socket keeps its backend while the set stays the same.
#[inline(always)]
pub fn send<P: Place>(ctx: &SockAddrContext) -> i32 {
    // Fibonacci hashing spreads consecutive cookies over the whole range.
    let random = (cookie(ctx).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    translate::<P>(ctx, |frontend| service::select_by::<P::Family>(frontend, Client::Inside, &Addr::<P>::ZERO, random))
}

/// `recvmsg(2)` and `getpeername(2)`: a backend is shown as the frontend that the process asked for.
#[inline(always)]
pub fn show_frontend<P: Place>(ctx: &SockAddrContext) -> i32 {
    if !concerns(ctx) {
        return ALLOW;
    }
    let key = key::<P>(ctx, &P::read(ctx), port(ctx));
    if let Some(origin) = P::Family::sockets().find(&key) {
        // SAFETY: the map keeps the entry readable; it is this socket's own and copied at once.
        let origin = unsafe { *origin };
        P::write(ctx, origin.addr);
        set_port(ctx, origin.port);
    }
    ALLOW
}

#[inline(always)]
fn translate<P: Place>(
    ctx: &SockAddrContext,
    select: impl FnOnce(&dataplane_common::Frontend) -> Step<Selected<Addr<P>>>,
) -> i32 {
    if !concerns(ctx) {
        return ALLOW;
    }
    let (addr, port) = (P::read(ctx), port(ctx));
    let selected = match service::find::<P::Family>(&addr, port, protocol(ctx), NODE_PORT_ON) {
        Ok(Some(frontend)) => select(frontend),
        Ok(None) => return ALLOW,
        Err(reason) => Err(reason),
    };
    match selected {
        Ok(selected) => {
            let origin = SocketOrigin {
                addr,
                port,
                pad: 0,
                backend: selected.id,
                generation: selected.backend.generation,
                service: selected.backend.service,
            };
            remember::<P>(ctx, &selected, &origin);
            P::write(ctx, selected.backend.addr);
            set_port(ctx, selected.backend.port);
            ALLOW
        }
        Err(reason) => {
            count_drop(reason);
            let errno = if reason.is_answered() { ECONNREFUSED } else { EHOSTUNREACH };
            // SAFETY: the helper has no preconditions; without it the process would see EPERM.
            unsafe { bpf_set_retval(-errno) };
            DENY
        }
    }
}

/// Notes what the socket meant to reach, once per socket and backend.
#[inline(always)]
fn remember<P: Place>(ctx: &SockAddrContext, selected: &Selected<Addr<P>>, origin: &SocketOrigin<Addr<P>>) {
    let key = key::<P>(ctx, &selected.backend.addr, selected.backend.port);
    if let Some(known) = P::Family::sockets().find(&key) {
        // SAFETY: the map keeps the entry readable; a torn read only costs an update.
        if unsafe { *known } == *origin {
            return;
        }
    }
    // A full map evicts its oldest entry, so this fails only without memory; the connection works all the same and only
    // `getpeername` shows the backend.
    let _unshown = P::Family::sockets().put(&key, origin, u64::from(BPF_ANY));
}

#[inline(always)]
fn key<P: Place>(ctx: &SockAddrContext, addr: &Addr<P>, port: BePort) -> SocketKey<Addr<P>> {
    let cookie = SocketKey::<Addr<P>>::cookie_words(cookie(ctx));
    SocketKey { cookie, addr: *addr, port, protocol: protocol(ctx), pad: 0 }
}

/// Whether sockets like this one are translated: TCP and UDP, of the node itself unless pods' are wanted too.
#[inline(always)]
fn concerns(ctx: &SockAddrContext) -> bool {
    let protocol = protocol(ctx);
    if protocol != Protocol::Tcp as u8 && protocol != Protocol::Udp as u8 {
        return false;
    }
    // SAFETY: the context is valid while the program runs.
    config::has(NodeConfig::SOCKETS_OF_PODS)
        || unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == config::host_netns_cookie()
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    // Numbers beyond a byte (MPTCP) are none of ours.
    if protocol > 0xff { 0 } else { protocol as u8 }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> BePort {
    // SAFETY: the context is valid while the program runs. The field holds the 16 bits in network order.
    BePort(unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16)
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: BePort) {
    // SAFETY: the context is valid while the program runs; the kernel lets these programs write the field.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.0)) };
}
