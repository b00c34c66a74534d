//! The four attach points: what is particular to each.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{FlowKey, Frontend, Next, Side, map::local_addr};

use crate::{
    arrangement::{Arrangement, masquerade},
    direct,
    family::{Datapath, Headers},
    forward,
    packet::{self, Frame, Packet},
    service::{self, Client, Selected},
    verdict::{Step, Verdict},
};

/// An attach point.
pub trait Hook {
    /// On which side of the stack it is.
    const SIDE: Side;
    /// Who sends what arrives here.
    const CLIENT: Client;
    /// Which local addresses take NodePorts here: bits of `local_addr::*`.
    const NODE_PORT_ON: u32;
    /// Whether pods are on the other side of the interface.
    const FROM_PODS: bool = false;
    /// Whether packets may leave for their next hop from here, without the stack between.
    const BYPASSES: bool = false;
    /// Whether requests come from and go to other nodes here, whose backends may answer directly.
    const BETWEEN_NODES: bool = false;
    /// Whether flows begin here.
    const BEGINS_FLOWS: bool = true;
    /// Whether the stack is still to come, which cuts what is too large.
    const BEFORE_STACK: bool = matches!(Self::SIDE, Side::Ingress);

    /// Whether a packet that belongs to no flow may begin one.
    #[inline(always)]
    fn may_begin(_skb: *mut __sk_buff) -> bool {
        true
    }

    /// Completes the tuple `to`, whose destination is the backend, and says where both directions are translated.
    fn arrange<F: Datapath>(
        packet: &impl Frame,
        headers: &Headers<F::Addr>,
        frontend: &Frontend,
        selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement>;

    /// Sends an answer, made out of the packet, to the packet's sender.
    #[inline(always)]
    fn reply(packet: &mut Packet<'_>) -> Step<Verdict> {
        forward::bounce(packet)
    }
}

/// What a pod sends: requests to services, and both directions of hairpins.
pub struct FromPod;

impl Hook for FromPod {
    const SIDE: Side = Side::Ingress;
    const CLIENT: Client = Client::Inside;
    const NODE_PORT_ON: u32 = local_addr::NODE_PORT;
    const FROM_PODS: bool = true;
    const BYPASSES: bool = true;

    #[inline(always)]
    fn arrange<F: Datapath>(
        packet: &impl Frame,
        _headers: &Headers<F::Addr>,
        frontend: &Frontend,
        selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        if to.src != to.dst {
            if service::is_masqueraded::<F>(frontend, Self::CLIENT, &to.src) {
                return masquerade::<F>(packet, selected, to, false);
            }
            return Ok(Arrangement::THROUGH_STACK);
        }
        // A pod drops what has its own address as a source, so it sees the hairpin address and answers to this hook.
        to.src = F::hairpin();
        Ok(Arrangement::new((Side::Ingress, Next::Bounce), (Side::Ingress, Next::Bounce)))
    }
}

/// What goes into a pod: replies to the pod's own connections get their frontend back.
pub struct ToPod;

impl Hook for ToPod {
    const SIDE: Side = Side::Egress;
    const CLIENT: Client = Client::Inside;
    const NODE_PORT_ON: u32 = 0;
    const BEGINS_FLOWS: bool = false;

    #[inline(always)]
    fn arrange<F: Datapath>(
        _packet: &impl Frame,
        _headers: &Headers<F::Addr>,
        _frontend: &Frontend,
        _selected: &Selected<F::Addr>,
        _to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        Ok(Arrangement::new((Side::Egress, Next::Stack), (Side::Ingress, Next::Stack)))
    }
}

/// What comes from outside: requests to NodePorts and addresses the node answers for, replies to what it SNATed.
pub struct FromUplink;

impl Hook for FromUplink {
    const SIDE: Side = Side::Ingress;
    const CLIENT: Client = Client::Outside;
    const NODE_PORT_ON: u32 = local_addr::NODE_PORT;
    const BYPASSES: bool = true;
    const BETWEEN_NODES: bool = true;

    #[inline(always)]
    fn arrange<F: Datapath>(
        packet: &impl Frame,
        headers: &Headers<F::Addr>,
        frontend: &Frontend,
        selected: &Selected<F::Addr>,
        to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        let masqueraded = service::is_masqueraded::<F>(frontend, Self::CLIENT, &to.src);
        if selected.backend.is_local() && !masqueraded {
            // The client keeps its address: replies of a local backend leave through this node in any case.
            return Ok(Arrangement::THROUGH_STACK);
        }
        // A pod drops what has its own address as a source.
        let direct = direct::is_on::<F>() && !masqueraded && to.src != to.dst && direct::can_tell::<F>(packet, headers);
        // Otherwise replies of a remote backend come back here only if this node sent the request.
        masquerade::<F>(packet, selected, to, direct)
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
    fn may_begin(skb: *mut __sk_buff) -> bool {
        packet::is_locally_sent(skb)
    }

    #[inline(always)]
    fn arrange<F: Datapath>(
        _packet: &impl Frame,
        _headers: &Headers<F::Addr>,
        _frontend: &Frontend,
        _selected: &Selected<F::Addr>,
        _to: &mut FlowKey<F::Addr>,
    ) -> Step<Arrangement> {
        // The stack chose this uplink for the frontend; the backend may be elsewhere, so the packet is routed again.
        Ok(Arrangement::new((Side::Egress, Next::Route), (Side::Ingress, Next::Receive)))
    }

    #[inline(always)]
    fn reply(packet: &mut Packet<'_>) -> Step<Verdict> {
        packet.swap_ethernet_addresses()?;
        Ok(Verdict::Receive(packet.interface()))
    }
}
