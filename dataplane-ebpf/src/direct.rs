//! Direct server return: the entry node tells the backend's node which frontend the client sent to, and that node answers the
//! client in the frontend's name.
//!
//! Both stages look at few packets: those that tell, and those with options.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{BePort, Direction, Exit, Frontend, Next, NodeConfig, Protocol, Side, Ticks};

use crate::{
    clock, config,
    conntrack::{self, Adoption},
    family::{self, Datapath, Headers, Parsed, Part},
    forward::{self, Reach},
    maps::Table as _,
    packet::{ETH_LEN, Frame, Packet},
    service,
    verdict::{Outcome, Step},
    way,
};

/// What every link takes that IPv4 runs on (RFC 791, 3.2): for next hops whose MTU is not told yet.
const LEAST_MTU: u32 = 576;

/// Whether backends' nodes answer clients of the family `F` directly.
#[inline(always)]
pub fn is_on<F: Datapath>() -> bool {
    F::ANNOUNCEMENT_LEN != 0 && config::has(NodeConfig::DIRECT_RETURN)
}

/// Whether the packet may tell of its frontend: it begins a connection or is a whole datagram, and nothing is between its headers.
///
/// Segments that are to be cut once more stay as they are: a datagram's header must fit each of its pieces.
#[inline(always)]
pub fn can_tell<F: Datapath>(packet: &impl Frame, headers: &Headers<F::Addr>) -> bool {
    let begins = headers.key.protocol == Protocol::Udp as u8
        || headers.key.protocol == Protocol::Tcp as u8 && headers.tcp.opens();
    begins
        && headers.part == Part::Whole
        && headers.transport == ETH_LEN + F::HEADER_LEN
        && packet.segment_len() == 0
        && headers.hop_limit > 1
}

/// Whether the packet with what tells of its frontend still fits a link that takes `mtu` bytes.
#[inline(always)]
pub fn fits<F: Datapath>(packet: &impl Frame, mtu: u32) -> bool {
    let mtu = if mtu == u32::MAX { LEAST_MTU } else { mtu };
    packet.len() - ETH_LEN as u32 + F::ANNOUNCEMENT_LEN as u32 <= mtu
}

/// Whether the flow is one whose backend's node answers.
#[inline(always)]
pub fn is_direct<F: Datapath>(next: u8) -> bool {
    is_on::<F>() && next == Next::Direct as u8
}

/// Writes the frontend of a direct flow's packet into it, where there is room: at the entry node, before its translation.
#[inline(never)]
pub fn tell<F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(headers)) = family::parse::<F>(&mut packet) else { return Outcome::PASS };
    match write::<F>(&mut packet, &headers) {
        Ok(()) => Outcome::BEGUN,
        Err(reason) => Outcome::of(Err(reason)),
    }
}

#[inline(always)]
fn write<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>) -> Step<()> {
    let Some(flow) = conntrack::find::<F>(&headers.key) else { return Ok(()) };
    let now = clock::now();
    let interface = packet.interface();
    let mut mtu = flow.way.mtu;
    if !way::is_current(&flow.way, interface, now) {
        let hop = forward::resolve::<F>(packet, interface, &flow.translated(headers.key.protocol))?;
        mtu = hop.mtu;
        if hop.reach == Reach::Known {
            way::remember(&mut flow.way, &hop, interface, Exit::Transmit, now);
        }
    }
    if !fits::<F>(packet, mtu) {
        return Ok(());
    }
    F::announce(packet, &headers.key.dst, headers.key.dst_port)
}

/// Whether the packet has room for the telling of a frontend: all that the others pay.
#[inline(always)]
pub fn may_tell<F: Datapath>(skb: *mut __sk_buff) -> bool {
    // SAFETY: `run` passes the context of the running program.
    let packet = unsafe { Packet::new::<F>(skb) };
    F::may_be_announced(&packet)
}

/// Takes what a packet tells of its frontend out of it, at the backend's node, and keeps it for the answers. Everything else stays as
/// it is.
#[inline(never)]
pub fn listen<F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(headers)) = family::parse::<F>(&mut packet) else { return Outcome::PASS };
    let Some((addr, port)) = F::announced(&packet) else { return Outcome::PASS };
    let begins = headers.key.protocol == Protocol::Udp as u8 || headers.tcp.opens();
    if !begins || headers.part == Part::Later || packet.segment_len() != 0 {
        return Outcome::PASS;
    }
    match keep::<F>(&packet, &headers, &addr, port) {
        Ok(true) => {}
        Ok(false) => return Outcome::PASS,
        Err(reason) => return Outcome::of(Err(reason)),
    }
    match F::withdraw(&mut packet) {
        Ok(()) => Outcome::PASS,
        Err(reason) => Outcome::of(Err(reason)),
    }
}

/// Opens the flow of a request to the frontend at `addr` and `port` unless it is open. False when there is no such frontend here or
/// the packet is not for a backend of this node: anyone may write options.
#[inline(always)]
fn keep<F: Datapath>(packet: &Packet<'_>, headers: &Headers<F::Addr>, addr: &F::Addr, port: BePort) -> Step<bool> {
    let key = &headers.key;
    if is_kept::<F>(headers, addr, port, clock::now()) {
        return Ok(true);
    }
    let Some(service) = service::known::<F>(addr, port, key.protocol).map(|frontend: &Frontend| frontend.service)
    else {
        return Ok(false);
    };
    let interface = packet.interface();
    // Nothing is routed to the node's own addresses.
    let to_process = match forward::resolve::<F>(packet, interface, key) {
        // Out of an uplink: another node's.
        Ok(hop) if F::snat_addrs().find(&hop.interface).is_some() => return Ok(false),
        Ok(_) => false,
        Err(_) => true,
    };
    let mut adoption =
        Adoption { addr: *addr, port, service, src: key.src, next: Next::Stack, reply: (Side::Egress, Next::Stack) };
    match forward::resolve::<F>(packet, interface, &key.reversed()) {
        Ok(hop) if hop.interface == interface => {}
        // The route to the client is another one, such as none of the tunnel that nodes speak through, or that to a pod here: the
        // stack's reverse-path filter is to see the packet come in there.
        Ok(_) => adoption.next = Next::Receive,
        // From one process of this node to another, whose answer would not pass here.
        Err(_) if to_process => return Ok(false),
        // A process of this node asked another node. The stack takes nothing from outside that has its own address as a source, so the
        // pod sees the hairpin address and answers to `from_pod`.
        Err(_) => {
            adoption.src = F::hairpin();
            adoption.reply = (Side::Ingress, Next::Receive);
        }
    }
    conntrack::adopt::<F>(key, &adoption)?;
    Ok(true)
}

/// Whether the request's flow is open, and its answers get the frontend at `addr` and `port`.
#[inline(always)]
fn is_kept<F: Datapath>(headers: &Headers<F::Addr>, addr: &F::Addr, port: BePort, now: Ticks) -> bool {
    let key = &headers.key;
    let Some(request) = conntrack::find::<F>(key) else { return false };
    let Some(answer) = conntrack::find::<F>(&request.translated(key.protocol).reversed()) else { return false };
    let same = answer.src == *addr
        && answer.src_port == port
        && answer.returns_to(key)
        && answer.direction == Direction::Reply as u8
        && request.keeps_destination(key)
        && request.direction == Direction::Original as u8;
    same && !request.state.is_closing() && (now.0 <= request.deadline || now.0 <= answer.deadline)
}
