//! Sending packets on without the stack: the way to a destination, and the way back to the sender.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup},
    helpers::bpf_fib_lookup as fib_lookup,
};
use dataplane_common::{DropReason, FlowKey};

use crate::{
    family::Datapath,
    packet::{Packet, swapped_halves},
    verdict::{Step, Verdict},
};

/// The kernel's `struct bpf_fib_lookup`, with its addresses and link-layer addresses as words.
#[repr(C, align(8))]
pub struct FibRequest {
    family: u8,
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    /// In: total length, or zero for "that of the packet". Out: the MTU.
    mtu: u16,
    interface: u32,
    flow_information: u32,
    pub src: [u32; 4],
    pub dst: [u32; 4],
    vlan: u32,
    /// Source, then destination.
    ethernet_addresses: [u32; 3],
}

const _: () = assert!(size_of::<FibRequest>() == size_of::<bpf_fib_lookup>());

/// What is known of the next hop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its link-layer address.
    Known,
    /// Its neighbour is not resolved yet.
    Unresolved,
    /// The packet is larger than the link takes.
    TooBig,
}

/// The next hop towards a destination.
pub struct Hop {
    pub reach: Reach,
    pub interface: u32,
    /// With [`Reach::TooBig`], what the link takes.
    pub mtu: u16,
    /// With [`Reach::Known`], the link-layer addresses of a frame to it.
    pub ethernet_addresses: [u32; 3],
}

/// Looks up where a packet with the tuple `to` leaves the node, and whether it fits.
#[inline(always)]
pub fn resolve<F: Datapath>(packet: &Packet<'_>, to: &FlowKey<F::Addr>) -> Step<Hop> {
    let mut request = FibRequest {
        family: F::SOCKET_FAMILY,
        protocol: to.protocol,
        src_port: to.src_port.0,
        dst_port: to.dst_port.0,
        // With zero the kernel checks the packet itself, GSO segments included (since 5.12).
        mtu: 0,
        interface: packet.interface(),
        flow_information: 0,
        src: [0; 4],
        dst: [0; 4],
        vlan: 0,
        ethernet_addresses: [0; 3],
    };
    F::set_fib_addresses(&mut request, &to.src, &to.dst);
    // SAFETY: both pointers are valid for the call, and the size is that of the structure.
    let result =
        unsafe { fib_lookup(packet.raw().cast(), (&raw mut request).cast(), size_of::<FibRequest>() as i32, 0) };
    let reach = match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Reach::Known,
        BPF_FIB_LKUP_RET_NO_NEIGH => Reach::Unresolved,
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Reach::TooBig,
        _ => return Err(DropReason::NoRoute),
    };
    Ok(Hop {
        reach,
        interface: request.interface,
        mtu: request.mtu,
        ethernet_addresses: swapped_halves(request.ethernet_addresses),
    })
}

/// Sends the packet out towards a hop that [`resolve`] found.
#[inline(always)]
pub fn transmit(packet: &mut Packet<'_>, hop: &Hop) -> Step<Verdict> {
    if hop.reach != Reach::Known {
        return Ok(Verdict::TransmitToNeighbour(hop.interface));
    }
    packet.set_ethernet_addresses(hop.ethernet_addresses)?;
    Ok(Verdict::Transmit(hop.interface))
}

/// Sends the packet back out of the interface it came from.
#[inline(always)]
pub fn bounce(packet: &mut Packet<'_>) -> Step<Verdict> {
    packet.swap_ethernet_addresses()?;
    Ok(Verdict::Transmit(packet.interface()))
}

/// Hands the packet with the tuple `to` to the stack as if it had come in by the interface that leads to its source.
///
/// A socket of this node sent the request out by that interface, so this is where strict reverse-path filtering (RFC 3704)
/// expects the answer.
#[inline(always)]
pub fn receive<F: Datapath>(packet: &mut Packet<'_>, to: &FlowKey<F::Addr>) -> Step<Verdict> {
    let hop = resolve::<F>(packet, &to.reversed())?;
    if hop.reach != Reach::Known {
        // The interface's own address is only told with its neighbour's; loose filtering lets the packet in as it is.
        return Ok(Verdict::Pass);
    }
    packet.set_ethernet_addresses(swapped_halves(hop.ethernet_addresses))?;
    Ok(Verdict::Receive(hop.interface))
}
