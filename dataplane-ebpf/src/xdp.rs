//! XDP on uplinks: flows between clients outside and backends on other nodes, before the kernel spends anything on their
//! packets.
//!
//! The program does to them what `from_uplink` would do, on the same maps. Everything else passes untouched, and
//! `from_uplink` runs after it: answers, drops, and whatever is not a plain TCP segment or UDP datagram are left to that.
//! So all that passes is looked up twice, and the first look must be short.

mod frame;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use dataplane_common::{Direction, Exit, Flow, FlowKey, Next, Protocol, Side, Ticks, V4, V6};

use self::frame::XdpFrame;
use crate::{
    clock, conntrack, direct,
    family::{self, Datapath, Headers},
    forward::{self, Reach},
    hook::{FromUplink, Hook},
    maps::count_drop,
    nat,
    packet::Frame as _,
    pipeline,
    service::{self, Place},
    verdict::Step,
    way,
};

/// On to the stack, and to `from_uplink` before it.
const PASS: u32 = xdp_action::XDP_PASS;
/// The end of a packet whose drop has been counted.
const DROP: u32 = xdp_action::XDP_DROP;
/// Beyond every action that the kernel knows: the packet may begin a flow.
const UNKNOWN_FLOW: u32 = 0x100;

/// Offset of the EtherType. A VLAN tag that the device has left in the frame stands there too, and its frame passes.
const ETHER_TYPE: usize = 12;

/// Runs the stages for the packet's family; the result is for the kernel. `GENERIC` says that it is generic XDP.
#[inline(always)]
pub fn run<const GENERIC: bool>(ctx: *mut xdp_md) -> u32 {
    // SAFETY: this is the context of the running program.
    let packet = unsafe { XdpFrame::new(ctx) };
    match packet.half(ETHER_TYPE) {
        Ok(V4::ETHER_TYPE) => run_family::<V4, GENERIC>(ctx),
        Ok(V6::ETHER_TYPE) => run_family::<V6, GENERIC>(ctx),
        _ => PASS,
    }
}

#[inline(always)]
fn run_family<F: Datapath, const GENERIC: bool>(ctx: *mut xdp_md) -> u32 {
    let action = known_flow::<F, GENERIC, false>(ctx);
    if action != UNKNOWN_FLOW {
        return action;
    }
    if new_flow::<F>(ctx) == UNKNOWN_FLOW {
        return PASS;
    }
    // A flow for which this finds no way after all is known to `from_uplink`.
    known_flow::<F, GENERIC, true>(ctx)
}

/// Translates and sends a packet of a known flow: the path of most packets that are not passed.
#[inline(never)]
fn known_flow<F: Datapath, const GENERIC: bool, const FRESH: bool>(ctx: *mut xdp_md) -> u32 {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { XdpFrame::new(ctx) };
    let Some(headers) = family::parse_plain::<F>(&packet) else { return PASS };
    let Some(flow) = conntrack::find::<F>(&headers.key) else { return unknown(&headers) };
    // What is to tell of its frontend grows on its way: that is for `from_uplink`.
    let leaves = flow.next == Next::Route as u8
        || direct::is_direct::<F>(flow.next) && !direct::can_tell::<F>(&packet, &headers);
    if flow.side != Side::Ingress as u8 || !leaves || headers.hop_limit <= 1 {
        return PASS;
    }
    if GENERIC && has_data::<F>(&packet, &headers) {
        return PASS;
    }
    let now = clock::now();
    if !FRESH && conntrack::is_over::<F>(&headers, flow, now) {
        return unknown(&headers);
    }
    // Copied before the packet is, as in `pipeline`.
    let to = flow.translated(headers.key.protocol);
    if !way::is_current(&flow.way, packet.interface(), now) && !find_way::<F>(&packet, &headers.key, flow, &to, now) {
        return PASS;
    }
    let suits = flow.way.interface == packet.interface()
        && forward::network_len(&packet, &headers).is_ok_and(|len| len <= flow.way.mtu);
    if !suits {
        return PASS;
    }
    let ethernet_addresses = flow.way.ethernet_addresses;
    // Only now, so that a packet that passes is counted once.
    conntrack::account::<F>(&headers, flow, packet.len(), now);
    match send::<F>(&mut packet, &headers, &to, ethernet_addresses) {
        Ok(()) => xdp_action::XDP_TX,
        Err(reason) => {
            count_drop(reason);
            DROP
        }
    }
}

/// What becomes of a packet without a flow: only a connection's first packet and datagrams begin one here.
#[inline(always)]
fn unknown<A>(headers: &Headers<A>) -> u32 {
    if headers.key.protocol == Protocol::Udp as u8 || headers.tcp.opens() { UNKNOWN_FLOW } else { PASS }
}

/// Whether the packet is a TCP segment with data.
///
/// Generic XDP runs behind GRO, which may have joined it from several; the checksum of such a segment is not complete, and
/// the program is not told.
#[inline(always)]
fn has_data<F: Datapath>(packet: &XdpFrame<'_>, headers: &Headers<F::Addr>) -> bool {
    if headers.key.protocol != Protocol::Tcp as u8 {
        return false;
    }
    let (Ok([_, _, _, offset, _]), Ok(len)) = (packet.words::<5>(headers.transport), F::transport_len(packet, headers))
    else {
        return true;
    };
    len != (u32::from_be(offset) >> 28) * 4
}

/// Looks up the way of a flow's packets, unless `from_uplink` is to do that: it hands its packet to the kernel's neighbour
/// discovery, which this program goes around. So the first packet of each later tick passes, and for the sake of next hops
/// that see short flows alone, the first one of the flows of each 64th client port.
#[inline(always)]
fn find_way<F: Datapath>(
    packet: &XdpFrame<'_>,
    key: &FlowKey<F::Addr>,
    flow: &mut Flow<F::Addr>,
    to: &FlowKey<F::Addr>,
    now: Ticks,
) -> bool {
    let client = if flow.direction == Direction::Original as u8 { key.src_port } else { to.dst_port };
    if flow.way.checked != 0 || client.get() % 64 == 63 {
        return false;
    }
    let interface = packet.interface();
    let Ok(hop) = forward::resolve::<F>(packet, interface, to) else { return false };
    if hop.reach != Reach::Known {
        return false;
    }
    way::remember(&mut flow.way, &hop, interface, Exit::Transmit, now);
    true
}

/// Does what forwarding by the stack would have done, after the translation to `to`.
#[inline(always)]
fn send<F: Datapath>(
    packet: &mut XdpFrame<'_>,
    headers: &Headers<F::Addr>,
    to: &FlowKey<F::Addr>,
    ethernet_addresses: [u32; 3],
) -> Step<()> {
    nat::rewrite::<F>(packet, headers, to)?;
    F::decrement_hop_limit(packet)?;
    packet.set_ethernet_addresses(ethernet_addresses)
}

/// Begins a flow if the packet is for a frontend; the packet stays as it is. Returns [`UNKNOWN_FLOW`] when none was begun:
/// `from_uplink` then finds out why.
#[inline(never)]
fn new_flow<F: Datapath>(ctx: *mut xdp_md) -> u32 {
    // SAFETY: `run` passes the context of the running program.
    let packet = unsafe { XdpFrame::new(ctx) };
    if begin::<F>(&packet).is_some() { PASS } else { UNKNOWN_FLOW }
}

/// Chooses the backend also where that turns out to be on this node: a second choice by `from_uplink` would favour those.
#[inline(always)]
fn begin<F: Datapath>(packet: &XdpFrame<'_>) -> Option<()> {
    let headers = family::parse_plain::<F>(packet)?;
    let key = &headers.key;
    let Place::Frontend(frontend) = service::place::<F>(&key.dst, key.dst_port, key.protocol, FromUplink::NODE_PORT_ON)
    else {
        return None;
    };
    let mut to = headers.key;
    let opening = pipeline::direct_to::<FromUplink, F>(packet, &headers, frontend, &mut to).ok()?;
    let next = conntrack::open::<F>(&headers, &mut to, &opening).ok()?;
    (next == Next::Route as u8).then_some(())
}
