//! The rewrite of a packet's addresses and ports, with every checksum.

use dataplane_common::{FlowKey, Protocol};

use crate::{
    checksum,
    family::{Datapath, Headers},
    packet::Packet,
    verdict::Step,
};

/// Offset of the checksum in a TCP or UDP header.
#[inline(always)]
pub const fn checksum_offset(protocol: u8) -> usize {
    if protocol == Protocol::Tcp as u8 { 16 } else { 6 }
}

/// Turns the packet with `headers` into one with the tuple `to`.
#[inline(always)]
pub fn rewrite<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, to: &FlowKey<F::Addr>) -> Step<()> {
    let addresses = checksum::address_difference(&headers.key, to);
    F::write_addresses(packet, &to.src, &to.dst, addresses)?;
    let ports = packet.at_mut::<[u8; 4]>(headers.transport)?;
    let ([s0, s1], [d0, d1]) = (to.src_port.0.to_ne_bytes(), to.dst_port.0.to_ne_bytes());
    *ports = [s0, s1, d0, d1];

    let protocol = headers.key.protocol;
    let offset = headers.transport + checksum_offset(protocol);
    let flags = F::pseudo_header_flags(protocol);
    packet.fix_transport_checksum(offset, addresses, flags)?;
    let ports = checksum::port_difference(&headers.key, to);
    // Ports are not part of the pseudo header: where the device completes the checksum, it sums them itself.
    if ports == 0 { Ok(()) } else { packet.fix_transport_checksum(offset, ports, flags & !PSEUDO_HEADER) }
}

/// The bits that say "a change of the pseudo header".
const PSEUDO_HEADER: u32 = aya_ebpf::bindings::BPF_F_PSEUDO_HDR | 1 << 7;
