//! The order of stages at each hook.
//!
//! Translation is symmetric around the host's stack: what is translated before it on the way in is put back after it on
//! the way out, so that netfilter, routing rules and other tools on the node see one consistent flow.

use dataplane_common::{DropReason, FlowKey, Next, Side, map::local_addr};

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

/// An attach point where flows may begin.
pub trait Hook {
    /// On which side of the stack it is.
    const SIDE: Side;
    /// Who sends what arrives here.
    const CLIENT: Client;
    /// Which local addresses take NodePorts here: bits of `local_addr::*`.
    const NODE_PORT_ON: u32;

    /// Whether a packet that belongs to no flow may begin one.
    #[inline(always)]
    fn may_begin(_packet: &Packet<'_>) -> bool {
        true
    }

    /// Completes the tuple `to`, whose destination is the backend, and says where both directions are translated.
    fn arrange<F: Datapath>(
        packet: &Packet<'_>,
        selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement>;

    /// Sends an answer, made out of the packet, to the packet's sender.
    #[inline(always)]
    fn reply(packet: &mut Packet<'_>) -> Step<Verdict> {
        forward::bounce(packet)
    }
}

/// Where a flow's two directions are translated, and where they go then.
pub struct Arrangement {
    original: (Side, Next),
    reply: (Side, Next),
    /// The source address is shared with others, so the source port is ours to choose.
    allocate_port: bool,
}

impl Arrangement {
    const fn new(original: (Side, Next), reply: (Side, Next)) -> Self {
        Self { original, reply, allocate_port: false }
    }
}

/// What a pod sends: requests to services, and both directions of hairpins.
pub struct FromPod;

impl Hook for FromPod {
    const SIDE: Side = Side::Ingress;
    const CLIENT: Client = Client::Inside;
    const NODE_PORT_ON: u32 = local_addr::NODE_PORT;

    #[inline(always)]
    fn arrange<F: Datapath>(
        _packet: &Packet<'_>,
        _selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        if to.src != to.dst {
            return Ok(Arrangement::new((Side::Ingress, Next::Stack), (Side::Egress, Next::Stack)));
        }
        // A pod drops what has its own address as a source, so it sees the hairpin address and answers to this hook.
        to.src = F::hairpin();
        Ok(Arrangement::new((Side::Ingress, Next::Bounce), (Side::Ingress, Next::Bounce)))
    }
}

/// What comes from outside: requests to NodePorts and addresses the node answers for, replies to what it SNATed.
pub struct FromUplink;

impl Hook for FromUplink {
    const SIDE: Side = Side::Ingress;
    const CLIENT: Client = Client::Outside;
    const NODE_PORT_ON: u32 = local_addr::NODE_PORT;

    #[inline(always)]
    fn arrange<F: Datapath>(
        packet: &Packet<'_>,
        selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        if selected.backend.is_local() {
            // The client keeps its address: replies of a local backend leave through this node in any case.
            return Ok(Arrangement::new((Side::Ingress, Next::Stack), (Side::Egress, Next::Stack)));
        }
        // Replies of a remote backend come back here only if this node sent the request.
        to.src = snat_address::<F>(packet, to)?;
        let through = (Side::Ingress, Next::Route);
        Ok(Arrangement { original: through, reply: through, allocate_port: true })
    }
}

/// What leaves the node: replies of local backends, and requests of the node's own sockets that were not translated at
/// connect time.
pub struct ToUplink;

impl Hook for ToUplink {
    const SIDE: Side = Side::Egress;
    const CLIENT: Client = Client::Inside;
    /// None: the node's own addresses never leave through an uplink.
    const NODE_PORT_ON: u32 = 0;

    #[inline(always)]
    fn may_begin(packet: &Packet<'_>) -> bool {
        packet.is_locally_sent()
    }

    #[inline(always)]
    fn arrange<F: Datapath>(
        _packet: &Packet<'_>,
        _selected: &Selected<F::Addr>,
        _to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        // The stack chose this uplink for the frontend; the backend may be elsewhere, so the packet is routed again.
        Ok(Arrangement::new((Side::Egress, Next::Route), (Side::Ingress, Next::Stack)))
    }

    #[inline(always)]
    fn reply(packet: &mut Packet<'_>) -> Step<Verdict> {
        packet.swap_ethernet_addresses()?;
        Ok(Verdict::Receive(packet.interface()))
    }
}

/// A packet at a hook where flows may begin.
#[inline(always)]
pub fn run<H: Hook, F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
    let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
    // Filled in place: moving it through return values would cost copies.
    let mut to = headers.key;
    let next = match conntrack::track::<F>(&headers, H::SIDE, packet.len(), &mut to) {
        Tracked::Elsewhere => return Ok(Verdict::Pass),
        Tracked::Translate(next) => next,
        Tracked::Unknown => match begin::<H, F>(packet, &headers, &mut to) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Verdict::Pass),
            Err(DropReason::NoEndpoints) => {
                answer::refuse::<F>(packet, &headers)?;
                count_drop(DropReason::NoEndpoints);
                return H::reply(packet);
            }
            Err(reason) => return Err(reason),
        },
    };
    translate::<F>(packet, &headers, &to, next)
}

/// A packet on its way into a pod: replies to the pod's own connections get their frontend back.
///
/// No flow begins here and no entry for this hook leaves the way through the stack.
#[inline(always)]
pub fn run_to_pod<F: Datapath>(packet: &mut Packet<'_>) -> Step<Verdict> {
    let Some(headers) = F::parse(packet) else { return Ok(Verdict::Pass) };
    let mut to = headers.key;
    if let Tracked::Translate(_) = conntrack::track::<F>(&headers, Side::Egress, packet.len(), &mut to) {
        nat::rewrite::<F>(packet, &headers, &to)?;
    }
    Ok(Verdict::Pass)
}

/// Begins a flow if the packet is for a frontend: sets what it becomes in `to` and says where it goes (a [`Next`]). Nothing
/// is rewritten yet.
#[inline(always)]
fn begin<H: Hook, F: Datapath>(
    packet: &Packet<'_>,
    headers: &Headers<F::Addr>,
    to: &mut FlowKey<F::Addr>,
) -> Step<Option<u8>> {
    let key = &headers.key;
    if !H::may_begin(packet) {
        return Ok(None);
    }
    let Some(frontend) = service::find::<F>(&key.dst, key.dst_port, key.protocol, H::NODE_PORT_ON) else {
        return Ok(None);
    };
    let selected = service::select::<F>(&frontend, H::CLIENT)?;
    to.dst = selected.backend.addr;
    to.dst_port = selected.backend.port;
    let Arrangement { original, reply, allocate_port } = H::arrange::<F>(packet, &selected, to)?;
    let opening = Opening {
        backend: selected.id,
        generation: selected.backend.generation,
        service: frontend.service,
        original,
        reply,
        allocate_port,
    };
    conntrack::open::<F>(headers, to, &opening, packet.len())?;
    Ok(Some(original.1 as u8))
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

/// The address that a packet with the tuple `to` takes as its source: that of the interface it leaves through.
#[inline(always)]
fn snat_address<F: Datapath>(packet: &Packet<'_>, to: &FlowKey<F::Addr>) -> Step<F::Addr> {
    // Its size does not matter yet: `route` asks again and answers the sender.
    let interface = forward::resolve::<F>(packet, to)?.interface;
    let addr = F::snat_addrs().find(&interface).ok_or(DropReason::NoSnatAddress)?;
    // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while we copy it.
    Ok(unsafe { *addr })
}
