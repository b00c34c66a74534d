//! Ways around the stack: looked up when a flow begins and once per tick, remembered in the flow's entries.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{Device, Exit, FlowKey, Next, NodeConfig, PairWay, Side, Ticks, Way, map as spec};

use crate::{
    clock, config, conntrack,
    family::{self, Datapath, Headers, Parsed},
    forward::{self, Hop, Reach},
    fragments,
    maps::{DEVICES, Table as _},
    packet::{Frame as _, Packet},
    pairs,
    verdict::{Outcome, Step, Verdict},
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

/// Looks up where the packets of a flow that the stack forwards go next, and those that answer them. Returns whether the kernel
/// had to be asked.
///
/// A stage of its own: its lookups would not fit on the stack of those before.
#[inline(never)]
pub fn refresh<F: Datapath>(skb: *mut __sk_buff) -> bool {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(mut headers)) = family::parse::<F>(&mut packet) else { return false };
    if !matches!(fragments::follow::<F>(&mut headers), Ok(true)) {
        return false;
    }
    let key = &headers.key;
    let Some(flow) = conntrack::find::<F>(key) else { return false };
    if flow.next != Next::Stack as u8 {
        return false;
    }
    let now = clock::now();
    let ingress = packet.interface();
    // The tuple that the stack would see, and whose sender its reverse-path filter would look for: what is translated behind it
    // has its own.
    let mut to = headers.key;
    if flow.side == Side::Ingress as u8 {
        to.src = flow.src;
        to.dst = flow.dst;
        to.src_port = flow.src_port;
        to.dst_port = flow.dst_port;
    }
    let to = conntrack::placed(&to);
    let asks = !pair::<F>(&to.src, &to.dst).is_some_and(|there| there.is_of(&to.src, &to.dst, ingress, now));
    if asks {
        learn::<F>(&packet, to, now);
    }
    let Some(there) = pair::<F>(&to.src, &to.dst) else { return asks };
    if !there.is_of(&to.src, &to.dst, ingress, now) {
        // Taken by the way back.
        return asks;
    }
    flow.way = there.way;
    if let Some(back) = pair::<F>(&to.dst, &to.src)
        && back.is_of(&to.dst, &to.src, there.way.interface, now)
        && let Some(peer) = conntrack::peer::<F>(flow, key)
    {
        // SAFETY: an entry that the map keeps writable; see `conntrack::find`.
        let peer = unsafe { &mut *peer };
        if peer.next == Next::Stack as u8 {
            peer.way = back.way;
        }
    }
    asks
}

/// Sends a packet that nobody translates to its next hop, where there is a way around the stack; with `learns` it is known to be for
/// no frontend, and the kernel is asked for a way that is not known. Without, such a packet is [`Outcome::UNKNOWN_FLOW`].
///
/// It belongs to no flow that this node keeps, so its way is remembered for its two addresses alone: also that it is the stack.
#[inline(never)]
pub fn follow<F: Datapath>(skb: *mut __sk_buff, learns: bool) -> Outcome {
    let otherwise = if learns { Outcome::PASS } else { Outcome::UNKNOWN_FLOW };
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::pulled(skb) };
    // Options and fragments are the stack's business.
    let Some(headers) = family::parse_plain::<F>(&packet) else { return otherwise };
    let key = &headers.key;
    let now = clock::now();
    let ingress = packet.interface();
    let Some(mut there) = pair::<F>(&key.src, &key.dst) else { return otherwise };
    let known = there.is_of(&key.src, &key.dst, ingress, now);
    if !known && !learns {
        return otherwise;
    }
    // And so is what the stack would not take for its own.
    if headers.hop_limit <= 1 || !packet.is_for_this_host() {
        if !known {
            there.take(&key.src, &key.dst, ingress, now);
        }
        return Outcome::PASS;
    }
    if !known {
        learn::<F>(&packet, key, now);
        let Some(learned) = pair::<F>(&key.src, &key.dst) else { return Outcome::PASS };
        if !learned.is_of(&key.src, &key.dst, ingress, now) {
            // Taken by the way back.
            return Outcome::PASS;
        }
        there = learned;
    }
    Outcome::of(send::<F>(&mut packet, &headers, &there.way, !known))
}

/// Remembers that packets with the tuple `key` are for no frontend and go through the stack.
#[inline(always)]
pub fn note_stack<F: Datapath>(key: &FlowKey<F::Addr>, ingress: u32) {
    if let Some(there) = pair::<F>(&key.src, &key.dst) {
        there.take(&key.src, &key.dst, ingress, clock::now());
    }
}

/// Whether a way is remembered for the packet's addresses. Where none goes around the stack, that says only that it is for no frontend.
///
/// A function of its own for the kernel, as what it keeps would not fit on the stack of the first one.
#[inline(never)]
pub fn is_noted<F: Datapath>(skb: *mut __sk_buff) -> bool {
    // SAFETY: `run` passes the context of the running program.
    let packet = unsafe { Packet::pulled(skb) };
    let Some((src, dst)) = family::addresses::<F>(&packet) else { return false };
    pair::<F>(&src, &dst).is_some_and(|there| there.is_of(&src, &dst, packet.interface(), clock::now()))
}

/// Sends the packet on its `way`; with `confirm` the kernel is to use the neighbour itself.
#[inline(always)]
fn send<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, way: &Way, confirm: bool) -> Step<Outcome> {
    // What the way does not suit, the stack cuts, answers or drops. Policy of the destination belongs before this decision.
    let bypasses = config::has(NodeConfig::HOST_BYPASS) && way.exit != Exit::Stack as u32;
    if !bypasses || forward::network_len(packet, headers)? > way.mtu {
        return Ok(Outcome::PASS);
    }
    let peer = way.exit == Exit::Peer as u32;
    let mut hop = Hop::remembered(way);
    if confirm {
        hop.reach = Reach::Unresolved;
    }
    F::decrement_hop_limit(packet)?;
    let verdict = if peer { forward::hand_to_peer(packet, &hop) } else { forward::transmit(packet, &hop) };
    verdict.map(Verdict::act)
}

/// Asks the kernel for the way of packets with the tuple `to`, and for that of answers.
///
/// There is a way around the stack where both ends are behind interfaces that `devices` names, pods at one of them at least, and
/// where the packet came in by the one that leads to its sender: the stack's reverse-path filter is gone around, too. A neighbour
/// that is not resolved yet is left to the stack, which asks for it.
#[inline(always)]
fn learn<F: Datapath>(packet: &Packet<'_>, to: &FlowKey<F::Addr>, now: Ticks) {
    let ingress = packet.interface();
    let Some(there) = pair::<F>(&to.src, &to.dst) else { return };
    there.take(&to.src, &to.dst, ingress, now);
    if !F::is_forwarded(&to.src, &to.dst) {
        return;
    }
    let Some(near) = device(ingress) else { return };
    let Ok(hop) = forward::resolve::<F>(packet, ingress, to) else { return };
    let egress = hop.interface;
    let Some(far) = device(egress) else { return };
    if !is_of_pods(near, ingress) && !is_of_pods(far, egress) {
        return;
    }
    let Ok(answer) = forward::resolve::<F>(packet, egress, &to.reversed()) else { return };
    if answer.interface != near.routed_as {
        return;
    }
    if hop.reach == Reach::Known
        && let Some(there) = pair::<F>(&to.src, &to.dst)
    {
        remember(&mut there.way, &hop, ingress, exit_of(far, egress), now);
    }
    // What comes in by a bridge is seen at its ports.
    if answer.reach == Reach::Known
        && far.flags & Device::BRIDGE == 0
        && let Some(back) = pair::<F>(&to.dst, &to.src)
    {
        back.take(&to.dst, &to.src, egress, now);
        remember(&mut back.way, &answer, egress, exit_of(near, ingress), now);
    }
}

/// The place of the way from `src` to `dst`, whoever has it.
#[inline(always)]
fn pair<F: Datapath>(src: &F::Addr, dst: &F::Addr) -> Option<&'static mut PairWay<F::Addr>> {
    const BITS: u32 = spec::WAYS4.entries.ilog2();
    const { assert!(spec::WAYS4.entries.is_power_of_two() && spec::WAYS6.entries == spec::WAYS4.entries) };
    let place = F::ways().find(&(pairs::hash::<F>(src, dst) >> (32 - BITS)))?;
    // SAFETY: a per-CPU value belongs to this processor while the program runs.
    Some(unsafe { &mut *place })
}

/// Whether pods are behind `interface`; one that waits in a queue of its own is not told from an uplink.
#[inline(always)]
fn is_of_pods(device: Device, interface: u32) -> bool {
    device.flags & (Device::PEER | Device::BRIDGE) != 0 || device.routed_as != interface
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
