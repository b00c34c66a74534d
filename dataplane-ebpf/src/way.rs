//! Ways around the stack: looked up when a flow begins and once per tick, remembered in the flow's entries.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{Device, DropReason, Exit, Next, Ticks, Way};

use crate::{
    clock, conntrack,
    family::{self, Datapath, Parsed},
    forward::{self, Hop, Reach},
    fragments,
    maps::{DEVICES, Table as _},
    packet::{Frame as _, Packet},
};

/// Whether `way` was looked up in this tick, for packets that come in by `interface`.
#[inline(always)]
pub fn is_current(way: &Way, interface: u32, now: Ticks) -> bool {
    way.checked == now.0 && way.ingress == interface
}

/// Remembers `hop` as the way of packets that come in by `ingress`.
#[inline(always)]
pub fn remember(way: &mut Way, hop: &Hop, ingress: u32, exit: Exit, now: Ticks) {
    way.ethernet_addresses = hop.ethernet_addresses;
    way.interface = hop.interface;
    way.ingress = ingress;
    way.mtu = hop.mtu;
    way.exit = exit as u32;
    way.checked = now.0;
}

/// Looks up where the packets of a flow that the stack forwards go next, and those that answer them.
///
/// There is a way around the stack where both ends are behind interfaces that `devices` names, and where the packet came in
/// by the one that leads to its sender: the stack's reverse-path filter is gone around, too. A neighbour that is not resolved
/// yet is left to the stack, which asks for it.
///
/// A stage of its own: its lookups would not fit on the stack of those before.
#[inline(never)]
pub fn refresh<F: Datapath>(skb: *mut __sk_buff) {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(mut headers)) = family::parse::<F>(&mut packet) else { return };
    if !matches!(fragments::follow::<F>(&mut headers), Ok(true)) {
        return;
    }
    let key = &headers.key;
    let Some(flow) = conntrack::find::<F>(key) else { return };
    if flow.next != Next::Stack as u8 {
        return;
    }
    let now = clock::now();
    let ingress = packet.interface();
    flow.way.exit = Exit::Stack as u32;
    flow.way.ingress = ingress;
    flow.way.checked = now.0;
    let Some(near) = device(ingress) else { return };
    let Ok(hop) = forward::resolve::<F>(&packet, ingress, &flow.translated(key.protocol)) else { return };
    let egress = hop.interface;
    let Some(far) = device(egress) else { return };
    if hop.reach == Reach::Known {
        remember(&mut flow.way, &hop, ingress, exit_of(far, egress), now);
    }
    let back = forward::resolve::<F>(&packet, egress, &key.reversed());
    let Ok(hop) = back.and_then(|hop| if hop.interface == near.routed_as { Ok(hop) } else { Err(DropReason::NoRoute) })
    else {
        flow.way.exit = Exit::Stack as u32;
        return;
    };
    if hop.reach == Reach::Known
        && far.flags & Device::BRIDGE == 0
        && let Some(peer) = conntrack::peer::<F>(flow, key)
    {
        // SAFETY: an entry that the map keeps writable; see `conntrack::find`.
        let peer = unsafe { &mut *peer };
        if peer.next == Next::Stack as u8 {
            remember(&mut peer.way, &hop, egress, exit_of(near, ingress), now);
        }
    }
}

/// How packets are handed to what is behind `interface`.
#[inline(always)]
fn exit_of(device: Device, interface: u32) -> Exit {
    if device.flags & Device::PEER != 0 && device.routed_as == interface { Exit::Peer } else { Exit::Transmit }
}

#[inline(always)]
fn device(interface: u32) -> Option<Device> {
    // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while it is copied.
    DEVICES.find(&interface).map(|device| unsafe { *device })
}
