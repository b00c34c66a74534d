//! Sending packets on without the stack: the way to a destination, and the way back to the sender.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup},
    helpers::bpf_fib_lookup as fib_lookup,
};
use dataplane_common::{DropReason, FlowKey, Protocol, Way};

use crate::{
    family::{Datapath, Headers},
    packet::{CUT_BY_SENDER, ETH_LEN, Frame, Packet, opaque, swapped_halves},
    verdict::{Step, Verdict},
};

/// The kernel's `struct bpf_fib_lookup` in words: narrower fields side by side would be written together, misaligned.
#[repr(C, align(8))]
pub struct FibRequest {
    /// Family, protocol and source port.
    family: u32,
    /// Destination port, and in the upper half in: the packet's length; out: the MTU.
    mtu: u32,
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
    /// Its neighbour is not resolved yet, or is to be confirmed.
    Unresolved,
}

/// The next hop towards a destination.
pub struct Hop {
    pub reach: Reach,
    pub interface: u32,
    /// With [`Reach::Known`], the bytes that a packet on this route may have, from the network header on.
    pub mtu: u32,
    /// With [`Reach::Known`], the link-layer addresses of a frame to it.
    pub ethernet_addresses: [u32; 3],
}

impl Hop {
    /// The hop of a remembered `way`.
    #[inline(always)]
    pub fn remembered(way: &Way) -> Self {
        Self { reach: Reach::Known, interface: way.interface, mtu: way.mtu, ethernet_addresses: way.ethernet_addresses }
    }
}

/// Looks up where a packet with the tuple `to` that came in by `ingress` leaves the node.
#[inline(always)]
pub fn resolve<F: Datapath>(packet: &impl Frame, ingress: u32, to: &FlowKey<F::Addr>) -> Step<Hop> {
    let mut hop = MaybeUninit::uninit();
    if !look_up::<F>(packet.context(), ingress, to, &mut hop) {
        return Err(DropReason::NoRoute);
    }
    // SAFETY: written where there is a route.
    Ok(unsafe { hop.assume_init() })
}

/// Asks the FIB; false without a route. A function of its own for the kernel: the request would be on the stack of each caller
/// as often as it asks.
#[inline(never)]
fn look_up<F: Datapath>(context: *mut c_void, ingress: u32, to: &FlowKey<F::Addr>, hop: &mut MaybeUninit<Hop>) -> bool {
    // Of a known zero the compiler would make a call, and its stack is one too many.
    let zero = opaque(0);
    let mut request = FibRequest {
        family: u32::from(F::SOCKET_FAMILY) | u32::from(to.protocol) << 8 | u32::from(to.src_port.0) << 16,
        // A length that fits everywhere, since none means that the MTU is not told: the caller compares.
        mtu: u32::from(to.dst_port.0) | 1 << 16,
        interface: ingress,
        flow_information: zero,
        src: [zero; 4],
        dst: [zero; 4],
        vlan: zero,
        ethernet_addresses: [zero; 3],
    };
    F::set_fib_addresses(&mut request, &to.src, &to.dst);
    // SAFETY: both pointers are valid for the call, and the size is that of the structure.
    let result = unsafe { fib_lookup(context, (&raw mut request).cast(), size_of::<FibRequest>() as i32, 0) };
    let (reach, mtu) = match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => (Reach::Known, request.mtu >> 16),
        // The kernel stops before it tells the MTU.
        BPF_FIB_LKUP_RET_NO_NEIGH => (Reach::Unresolved, u32::MAX),
        _ => return false,
    };
    hop.write(Hop {
        reach,
        interface: request.interface,
        mtu,
        ethernet_addresses: swapped_halves(request.ethernet_addresses),
    });
    true
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

/// Hands the packet to the other end of the veth that `hop` leaves through.
#[inline(always)]
pub fn hand_to_peer(packet: &mut Packet<'_>, hop: &Hop) -> Step<Verdict> {
    packet.set_ethernet_addresses(hop.ethernet_addresses)?;
    Ok(Verdict::HandToPeer(hop.interface))
}

/// Bytes from the network header on of the largest packet that goes out: what a large one will be cut into counts.
#[inline(always)]
pub fn network_len<A>(packet: &impl Frame, headers: &Headers<A>) -> Step<u32> {
    let segment = packet.segment_len();
    if segment == 0 {
        return Ok(packet.len() - ETH_LEN as u32);
    }
    if segment == CUT_BY_SENDER {
        return Ok(0);
    }
    let transport = if headers.key.protocol == Protocol::Tcp as u8 {
        let [_, _, _, offset_and_flags, _] = packet.words::<5>(headers.transport)?;
        (offset_and_flags & 0xf0) >> 2
    } else {
        8
    };
    Ok((headers.transport - ETH_LEN) as u32 + transport + segment)
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
/// expects the answer. Leaves `to` reversed: another tuple would not fit on the stack.
#[inline(always)]
pub fn receive<F: Datapath>(packet: &mut Packet<'_>, to: &mut FlowKey<F::Addr>) -> Step<Verdict> {
    to.reverse();
    let hop = resolve::<F>(packet, packet.interface(), to)?;
    if hop.reach != Reach::Known {
        // The interface's own address is only told with its neighbour's; loose filtering lets the packet in as it is.
        return Ok(Verdict::Pass);
    }
    if hop.interface == packet.interface() {
        // It has come in there, or has been brought there by this program on another interface.
        return Ok(Verdict::Pass);
    }
    packet.set_ethernet_addresses(swapped_halves(hop.ethernet_addresses))?;
    Ok(Verdict::Receive(hop.interface))
}
