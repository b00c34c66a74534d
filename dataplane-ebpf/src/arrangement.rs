//! Where a new flow is translated and goes, and the source address that it gets.

use dataplane_common::{DropReason, FlowKey, Next, Side, map::ANY_INTERFACE};

use crate::{direct, family::Datapath, forward, maps::Table as _, packet::Frame, service::Selected, verdict::Step};

/// Where a flow's two directions are translated, and where they go then.
pub struct Arrangement {
    pub original: (Side, Next),
    pub reply: (Side, Next),
    /// The source address is shared with others, so the source port is ours to choose.
    pub allocate_port: bool,
}

impl Arrangement {
    /// The client keeps its address: translated before the stack on the way in, and put back behind it on the way out.
    pub const THROUGH_STACK: Self = Self::new((Side::Ingress, Next::Stack), (Side::Egress, Next::Stack));

    /// Both directions, the source port staying as it is.
    #[inline(always)]
    pub const fn new(original: (Side, Next), reply: (Side, Next)) -> Self {
        Self { original, reply, allocate_port: false }
    }
}

/// Gives the tuple `to` a source address of this node: that of the interface it leaves through. With `direct` that is for the case
/// that the client's own cannot be kept.
///
/// Both directions then go around the stack, which takes a packet with one of its own addresses as the source for a martian.
#[inline(always)]
pub fn masquerade<F: Datapath>(
    packet: &impl Frame,
    selected: &Selected<F::Addr>,
    to: &mut FlowKey<F::Addr>,
    direct: bool,
) -> Step<Arrangement> {
    // What is too large is answered by `route`, which asks again.
    let (interface, mtu) = match forward::resolve::<F>(packet, packet.interface(), to) {
        Ok(hop) => (hop.interface, hop.mtu),
        // A process of this node, to which nothing is routed. It answers through this node in any case.
        Err(_) if selected.backend.is_local() => return Ok(Arrangement::THROUGH_STACK),
        Err(reason) => return Err(reason),
    };
    let addr = F::snat_addrs().find(&interface).or_else(|| F::snat_addrs().find(&ANY_INTERFACE));
    let addr = addr.ok_or(DropReason::NoSnatAddress)?;
    // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while it is copied.
    to.src = unsafe { *addr };
    let direct = direct && direct::fits::<F>(packet, mtu);
    let through = (Side::Ingress, if direct { Next::Direct } else { Next::Route });
    Ok(Arrangement { original: through, reply: through, allocate_port: true })
}
