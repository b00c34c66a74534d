//! Translation at connect time: sockets of this node's processes talk to backends directly, and no packet is rewritten.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use dataplane_common::{
    Addr as _, BePort, DropReason, Family, Frontend, NodeConfig, Protocol, SocketKey, SocketOrigin, V4, V6,
    map::{ANY_INTERFACE, local_addr},
};

use crate::{
    config,
    family::Datapath,
    maps::{Table as _, Writable as _, count_drop},
    service::{self, Client, Selected},
    verdict::Step,
};

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
    /// The socket's own address, zero unless it is bound to one.
    fn bound_to(ctx: &SockAddrContext) -> Addr<Self>;
}

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A process in the node's own network namespace.
    Node,
    /// A process in a pod.
    Pod,
}

impl Owner {
    /// Which local addresses take NodePorts: loopback only for the node's own sockets, a pod has its own.
    #[inline(always)]
    const fn node_port_on(self) -> u32 {
        match self {
            Self::Node => local_addr::NODE_PORT | local_addr::LOOPBACK,
            Self::Pod => local_addr::NODE_PORT,
        }
    }
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
        [field::<{ offset_of!(bpf_sock_addr, user_ip4) }>(ctx)]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 1]) {
        set_field::<{ offset_of!(bpf_sock_addr, user_ip4) }>(ctx, addr[0]);
    }

    #[inline(always)]
    fn bound_to(ctx: &SockAddrContext) -> [u32; 1] {
        [load::<{ offset_of!(bpf_sock, src_ip4) }, _>(socket(ctx))]
    }
}

impl Place for Inet6 {
    type Family = V6;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u32; 4] {
        [word::<0>(ctx), word::<1>(ctx), word::<2>(ctx), word::<3>(ctx)]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 4]) {
        set_word::<0>(ctx, addr[0]);
        set_word::<1>(ctx, addr[1]);
        set_word::<2>(ctx, addr[2]);
        set_word::<3>(ctx, addr[3]);
    }

    #[inline(always)]
    fn bound_to(ctx: &SockAddrContext) -> [u32; 4] {
        let socket = socket(ctx);
        [
            load::<{ offset_of!(bpf_sock, src_ip6) }, _>(socket),
            load::<{ offset_of!(bpf_sock, src_ip6) + 4 }, _>(socket),
            load::<{ offset_of!(bpf_sock, src_ip6) + 8 }, _>(socket),
            load::<{ offset_of!(bpf_sock, src_ip6) + 12 }, _>(socket),
        ]
    }
}

impl Place for Mapped {
    type Family = V4;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u32; 1] {
        [word::<3>(ctx)]
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: [u32; 1]) {
        set_word::<3>(ctx, addr[0]);
    }

    #[inline(always)]
    fn bound_to(ctx: &SockAddrContext) -> [u32; 1] {
        // The kernel keeps a mapped address in the fields of both families.
        Inet::bound_to(ctx)
    }
}

/// A word of the IPv6 address.
#[inline(always)]
fn word<const INDEX: usize>(ctx: &SockAddrContext) -> u32 {
    match INDEX {
        0 => field::<{ offset_of!(bpf_sock_addr, user_ip6) }>(ctx),
        1 => field::<{ offset_of!(bpf_sock_addr, user_ip6) + 4 }>(ctx),
        2 => field::<{ offset_of!(bpf_sock_addr, user_ip6) + 8 }>(ctx),
        _ => field::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>(ctx),
    }
}

#[inline(always)]
fn set_word<const INDEX: usize>(ctx: &SockAddrContext, value: u32) {
    match INDEX {
        0 => set_field::<{ offset_of!(bpf_sock_addr, user_ip6) }>(ctx, value),
        1 => set_field::<{ offset_of!(bpf_sock_addr, user_ip6) + 4 }>(ctx, value),
        2 => set_field::<{ offset_of!(bpf_sock_addr, user_ip6) + 8 }>(ctx, value),
        _ => set_field::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>(ctx, value),
    }
}

/// The four bytes at `OFFSET` of the context.
#[inline(always)]
fn field<const OFFSET: usize>(ctx: &SockAddrContext) -> u32 {
    load::<OFFSET, _>(ctx.sock_addr)
}

/// The four bytes at `OFFSET` of a kernel's object, by an instruction written out: the verifier wants a constant offset from
/// the object itself, LLVM would keep the sum of both in a register or join neighbours.
#[inline(always)]
fn load<const OFFSET: usize, T>(object: *const T) -> u32 {
    let value: u64;
    // SAFETY: the verifier refuses to load a program that reads beyond the object.
    unsafe {
        core::arch::asm!(
            "{0} = *(u32 *)({1} + {2})",
            out(reg) value, in(reg) object, const OFFSET,
            options(nostack, readonly, preserves_flags),
        );
    }
    value as u32
}

/// The socket that the system call is about.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *const bpf_sock {
    let socket: *const bpf_sock;
    // SAFETY: as in `load`; the kernel replaces the read by that of its own pointer, which is never null here.
    unsafe {
        core::arch::asm!(
            "{0} = *(u64 *)({1} + {2})",
            out(reg) socket, in(reg) ctx.sock_addr, const offset_of!(bpf_sock_addr, __bindgen_anon_1),
            options(nostack, readonly, preserves_flags),
        );
    }
    socket
}

#[inline(always)]
fn set_field<const OFFSET: usize>(ctx: &SockAddrContext, value: u32) {
    // SAFETY: as in `load`; the kernel lets these programs write addresses and port.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({0} + {2}) = {1}",
            in(reg) ctx.sock_addr, in(reg) u64::from(value), const OFFSET,
            options(nostack, preserves_flags),
        );
    }
}

/// Whether an `AF_INET6` socket's address is an IPv4-mapped one.
#[inline(always)]
pub fn is_mapped(ctx: &SockAddrContext) -> bool {
    word::<0>(ctx) == 0 && word::<1>(ctx) == 0 && word::<2>(ctx) == 0xffff_u32.to_be()
}

/// `connect(2)`: a frontend becomes one of its backends, for as long as the socket lives.
///
/// A datagram socket would go on sending to a backend that is gone. The agent can end the node's own ones, but not a pod's:
/// those are left to the packet path.
#[inline(always)]
pub fn connect<P: Place>(ctx: &SockAddrContext) -> i32 {
    let Some(owner) = owner(ctx) else { return ALLOW };
    if owner == Owner::Pod && protocol(ctx) == Protocol::Udp as u8 {
        return ALLOW;
    }
    translate::<P>(ctx, owner, |frontend| {
        // SAFETY: the helper has no preconditions.
        service::select_by::<P::Family>(frontend, Client::Inside, &Addr::<P>::ZERO, unsafe { bpf_get_prandom_u32() })
    })
}

/// `sendmsg(2)` of a socket that is not connected: the same socket keeps its backend while the set stays the same.
#[inline(always)]
pub fn send<P: Place>(ctx: &SockAddrContext) -> i32 {
    // Fibonacci hashing spreads consecutive cookies over the whole range.
    let random = (cookie(ctx).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    let Some(owner) = owner(ctx) else { return ALLOW };
    translate::<P>(ctx, owner, |frontend| {
        service::select_by::<P::Family>(frontend, Client::Inside, &Addr::<P>::ZERO, random)
    })
}

/// `recvmsg(2)` and `getpeername(2)`: a backend is shown as the frontend that the process asked for.
#[inline(always)]
pub fn show_frontend<P: Place>(ctx: &SockAddrContext) -> i32 {
    if owner(ctx).is_none() {
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
    owner: Owner,
    select: impl FnOnce(&Frontend) -> Step<Selected<Addr<P>>>,
) -> i32 {
    let (addr, port) = (P::read(ctx), port(ctx));
    let selected = match service::find::<P::Family>(&addr, port, protocol(ctx), owner.node_port_on()) {
        // What depends on the client's address is decided where that is known.
        Ok(Some(frontend)) if owner == Owner::Pod && depends_on_client(frontend) => return ALLOW,
        Ok(Some(frontend)) => admit::<P>(ctx, frontend).and_then(|()| select(frontend)),
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

/// Checks a process of this node against the frontend's source ranges: it comes from the address its socket is bound to, else
/// from the node's.
///
/// A route would say which one of several, and no program here can ask for it. Bound to the frontend itself, it counts as the
/// node: where that address is the node's too, the kernel chooses it by itself, and kube-proxy admits it with the node.
#[inline(always)]
fn admit<P: Place>(ctx: &SockAddrContext, frontend: &Frontend) -> Step<()> {
    if frontend.flags & Frontend::SOURCE_RANGES == 0 {
        return Ok(());
    }
    let bound = P::bound_to(ctx);
    // Read again: LLVM 22 crashes on a comparison with the copy that the caller keeps.
    let to = P::read(ctx);
    let client = if bound == Addr::<P>::ZERO || bound == to {
        let node = P::Family::snat_addrs().find(&ANY_INTERFACE).ok_or(DropReason::SourceRange)?;
        // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while it is copied.
        unsafe { *node }
    } else {
        bound
    };
    service::admit::<P::Family>(frontend, &client)
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

/// Whose socket it is, if sockets like this one are translated: TCP and UDP, of the node itself unless pods' are wanted too.
#[inline(always)]
fn owner(ctx: &SockAddrContext) -> Option<Owner> {
    let protocol = protocol(ctx);
    if protocol != Protocol::Tcp as u8 && protocol != Protocol::Udp as u8 {
        return None;
    }
    // SAFETY: the context is valid while the program runs.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == config::host_netns_cookie() {
        return Some(Owner::Node);
    }
    config::has(NodeConfig::SOCKETS_OF_PODS).then_some(Owner::Pod)
}

/// Whether the choice of a backend, or that there is one, depends on the client's address: a socket has none yet.
#[inline(always)]
fn depends_on_client(frontend: &Frontend) -> bool {
    frontend.affinity_seconds != 0 || frontend.flags & Frontend::SOURCE_RANGES != 0
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    let protocol = field::<{ offset_of!(bpf_sock_addr, protocol) }>(ctx);
    // Numbers beyond a byte (MPTCP) are none of ours.
    if protocol > 0xff { 0 } else { protocol as u8 }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> BePort {
    // The field holds the 16 bits in network order.
    BePort(field::<{ offset_of!(bpf_sock_addr, user_port) }>(ctx) as u16)
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: BePort) {
    set_field::<{ offset_of!(bpf_sock_addr, user_port) }>(ctx, u32::from(port.0));
}
