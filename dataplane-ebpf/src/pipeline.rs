//! The order of stages at each hook.
//!
//! Translation is symmetric around the host's stack: what is translated before it on the way in is put back after it on
//! the way out, so that netfilter, routing rules and other tools on the node see one consistent flow.

use dataplane_common::{DropReason, FlowKey, Next, Side};

use crate::{
    answer,
    conntrack::{self, Opening, Tracked},
    family::{Datapath, Headers, IcmpError},
    forward::{self, Reach},
    maps::{Table as _, count_drop},
    nat,
    packet::Packet,
    service::{self, Client, Selected},
    verdict::{Step, Verdict},
};

/// What happens to a packet at one attach point.
pub trait Hook {
    /// Runs the stages for a packet of the family `F`.
    fn run<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict>;
}

/// A packet that a pod sent: services, and the way back of hairpins.
pub struct FromPod;

impl Hook for FromPod {
    #[inline(always)]
    fn run<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
        let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
        if let Some(verdict) = established::<F>(packet, &headers, Side::Ingress)? {
            return Ok(verdict);
        }
        let key = &headers.key;
        let Some(frontend) = service::find::<F>(&key.dst, key.dst_port, key.protocol, service::FROM_NETWORK) else {
            return Ok(Verdict::Pass);
        };
        let selected = match service::select::<F>(&frontend, Client::Inside) {
            Ok(selected) => selected,
            Err(reason) => return refuse::<F>(packet, &headers, reason),
        };
        let mut to = destination(key, &selected);
        // A pod would drop its own address as a source, so it sees the hairpin address and answers through this hook.
        let hairpin = selected.backend.addr == key.src;
        let (original, reply) = if hairpin {
            to.src = F::hairpin();
            ((Side::Ingress, Next::Bounce), (Side::Ingress, Next::Bounce))
        } else {
            ((Side::Ingress, Next::Stack), (Side::Egress, Next::Stack))
        };
        let opening = opening(&selected, frontend.service, original, reply);
        conntrack::open::<F>(&headers, &mut to, &opening, packet.len())?;
        translate::<F>(packet, &headers, &to, original.1 as u8)
    }
}

/// A packet from outside: NodePorts and addresses that the node answers for, and replies to what it SNATed.
pub struct FromUplink;

impl Hook for FromUplink {
    #[inline(always)]
    fn run<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
        let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
        if let Some(verdict) = established::<F>(packet, &headers, Side::Ingress)? {
            return Ok(verdict);
        }
        let key = &headers.key;
        let Some(frontend) = service::find::<F>(&key.dst, key.dst_port, key.protocol, service::FROM_NETWORK) else {
            return Ok(Verdict::Pass);
        };
        let selected = match service::select::<F>(&frontend, Client::Outside) {
            Ok(selected) => selected,
            Err(reason) => return refuse::<F>(packet, &headers, reason),
        };
        let mut to = destination(key, &selected);
        if selected.backend.is_local() {
            // The client keeps its address: replies of a local backend leave through this node in any case.
            let original = (Side::Ingress, Next::Stack);
            let opening = opening(&selected, frontend.service, original, (Side::Egress, Next::Stack));
            conntrack::open::<F>(&headers, &mut to, &opening, packet.len())?;
            return translate::<F>(packet, &headers, &to, original.1 as u8);
        }
        // Replies of a remote backend come back here only if this node sent the request.
        to.src = snat_address::<F>(packet, &to)?;
        let original = (Side::Ingress, Next::Route);
        let opening = Opening { allocate_port: true, ..opening(&selected, frontend.service, original, original) };
        conntrack::open::<F>(&headers, &mut to, &opening, packet.len())?;
        translate::<F>(packet, &headers, &to, original.1 as u8)
    }
}

/// A packet on its way into a pod: replies to its own connections get their frontend back.
pub struct ToPod;

impl Hook for ToPod {
    #[inline(always)]
    fn run<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
        let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
        // Only the way through the stack ends here, so there is nothing to route or to send back.
        if let Tracked::Translate(to, _) = conntrack::track::<F>(&headers, Side::Egress, packet.len()) {
            nat::rewrite::<F>(packet, &headers, &to)?;
        }
        Ok(Verdict::Pass)
    }
}

/// A packet on its way out of the node: replies of local backends, and requests of the node's own sockets that were not
/// translated at connect time.
pub struct ToUplink;

impl Hook for ToUplink {
    #[inline(always)]
    fn run<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
        let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
        if let Some(verdict) = established::<F>(packet, &headers, Side::Egress)? {
            return Ok(verdict);
        }
        if !packet.is_locally_sent() {
            return Ok(Verdict::Pass);
        }
        let key = &headers.key;
        // No NodePorts: the node's own addresses never leave through an uplink.
        let Some(frontend) = service::find::<F>(&key.dst, key.dst_port, key.protocol, 0) else {
            return Ok(Verdict::Pass);
        };
        let selected = match service::select::<F>(&frontend, Client::Inside) {
            Ok(selected) => selected,
            Err(reason) => return refuse_locally::<F>(packet, &headers, reason),
        };
        let mut to = destination(key, &selected);
        let original = (Side::Egress, Next::Route);
        let opening = opening(&selected, frontend.service, original, (Side::Ingress, Next::Stack));
        conntrack::open::<F>(&headers, &mut to, &opening, packet.len())?;
        translate::<F>(packet, &headers, &to, original.1 as u8)
    }
}

/// Handles a packet of a known flow; `None` when it is not of one.
#[inline(always)]
fn established<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, side: Side) -> Step<Option<Verdict>> {
    match conntrack::track::<F>(headers, side, packet.len()) {
        Tracked::Unknown => Ok(None),
        Tracked::Elsewhere => Ok(Some(Verdict::Pass)),
        Tracked::Translate(to, next) => translate::<F>(packet, headers, &to, next).map(Some),
    }
}

/// Rewrites the packet and sends it where `next` (a [`Next`]) says.
#[inline(always)]
fn translate<F: Datapath>(
    packet: &mut Packet<'_>,
    headers: &Headers<F::Addr>,
    to: &FlowKey<F::Addr>,
    next: u8,
) -> Step<Verdict> {
    if next == Next::Route as u8 {
        return route::<F>(packet, headers, to);
    }
    nat::rewrite::<F>(packet, headers, to)?;
    if next == Next::Bounce as u8 { forward::bounce(packet) } else { Ok(Verdict::Pass) }
}

/// Does for a redirected packet what the stack's forwarding would have done.
#[inline(always)]
fn route<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, to: &FlowKey<F::Addr>) -> Step<Verdict> {
    let forwarded = !packet.is_locally_sent();
    if forwarded && headers.hop_limit <= 1 {
        return complain::<F>(packet, headers, IcmpError::TimeExceeded, DropReason::HopLimit);
    }
    let hop = forward::resolve::<F>(packet, to)?;
    if hop.reach == Reach::TooBig {
        return complain::<F>(packet, headers, IcmpError::TooBig(hop.mtu), DropReason::TooBig);
    }
    nat::rewrite::<F>(packet, headers, to)?;
    if forwarded {
        F::decrement_hop_limit(packet)?;
    }
    forward::transmit(packet, &hop)
}

/// Sends an ICMP error about the packet, which has not been rewritten, to its sender.
#[inline(always)]
fn complain<F: Datapath>(
    packet: &mut Packet<'_>,
    headers: &Headers<F::Addr>,
    error: IcmpError,
    reason: DropReason,
) -> Step<Verdict> {
    answer::icmp_error::<F>(packet, headers, error)?;
    count_drop(reason);
    forward::bounce(packet)
}

/// Answers a packet that no backend can take.
#[inline(always)]
fn refuse<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, reason: DropReason) -> Step<Verdict> {
    if reason != DropReason::NoEndpoints {
        return Err(reason);
    }
    answer::refuse::<F>(packet, headers)?;
    count_drop(reason);
    forward::bounce(packet)
}

/// The same for a packet of the node's own sockets, whose answer comes in instead of going out.
#[inline(always)]
fn refuse_locally<F: Datapath>(
    packet: &mut Packet<'_>,
    headers: &Headers<F::Addr>,
    reason: DropReason,
) -> Step<Verdict> {
    if reason != DropReason::NoEndpoints {
        return Err(reason);
    }
    answer::refuse::<F>(packet, headers)?;
    count_drop(reason);
    packet.swap_ethernet_addresses()?;
    Ok(Verdict::Receive(packet.interface()))
}

/// The tuple `key` with the backend as its destination.
#[inline(always)]
fn destination<A: Copy>(key: &FlowKey<A>, selected: &Selected<A>) -> FlowKey<A> {
    FlowKey { dst: selected.backend.addr, dst_port: selected.backend.port, ..*key }
}

#[inline(always)]
fn opening<A>(selected: &Selected<A>, service: u32, original: (Side, Next), reply: (Side, Next)) -> Opening {
    Opening {
        backend: selected.id,
        generation: selected.backend.generation,
        service,
        original,
        reply,
        allocate_port: false,
    }
}

/// The address that a packet with the tuple `to` takes as its source: that of the interface it leaves through.
#[inline(always)]
fn snat_address<F: Datapath>(packet: &Packet<'_>, to: &FlowKey<F::Addr>) -> Step<F::Addr> {
    // Its size does not matter yet: `route` asks again and answers the sender.
    let interface = forward::resolve::<F>(packet, to)?.interface;
    let addr = F::snat_addrs().find(&interface).ok_or(DropReason::NoSnatAddress)?;
    // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while we copy it.
    Ok(unsafe { *addr })
}
