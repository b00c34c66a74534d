//! The rewrite of a packet's addresses and ports, with every checksum.

use dataplane_common::{Addr, DropReason, FlowKey, Protocol};

use crate::{
    checksum,
    family::{Datapath, Headers, Part, Quote},
    packet::{ETH_LEN, Frame, Packet},
    verdict::Step,
};

/// Offset of the checksum in a TCP or UDP header.
#[inline(always)]
pub const fn checksum_offset(protocol: u8) -> usize {
    if protocol == Protocol::Tcp as u8 { 16 } else { 6 }
}

/// Turns the packet with `headers` into one with the tuple `to`.
#[inline(always)]
pub fn rewrite<F: Datapath>(packet: &mut impl Frame, headers: &Headers<F::Addr>, to: &FlowKey<F::Addr>) -> Step<()> {
    let addresses = checksum::address_difference(&headers.key, to);
    F::write_addresses(packet, ETH_LEN, &to.src, &to.dst, addresses)?;
    if headers.part == Part::Later {
        return Ok(());
    }
    let ports = checksum::port_difference(&headers.key, to);
    let protocol = headers.key.protocol;
    if protocol == Protocol::Sctp as u8 {
        // Its checksum is a CRC of the whole packet without any address (RFC 9260, 6.8): addresses change freely, ports not.
        return if ports == 0 { Ok(()) } else { Err(DropReason::SctpPort) };
    }
    write_ports(packet, headers.transport, to)?;
    let offset = headers.transport + checksum_offset(protocol);
    let flags = F::pseudo_header_flags(protocol);
    packet.fix_transport_checksum(offset, addresses, flags)?;
    // Ports are not part of the pseudo header: where the device completes the checksum, it sums them itself.
    if ports == 0 { Ok(()) } else { packet.fix_transport_checksum(offset, ports, flags & !PSEUDO_HEADER) }
}

/// Turns an ICMP error about a packet into one about what its sender knows it as: `to` is the flow's translated tuple in the
/// error's direction, so the quoted packet becomes its reverse.
#[inline(always)]
pub fn rewrite_error<F: Datapath>(packet: &mut Packet<'_>, quote: &Quote<F::Addr>, to: &FlowKey<F::Addr>) -> Step<()> {
    let quoted = to.reversed();
    let addresses = checksum::address_difference(&quote.key, &quoted);
    let ports = checksum::port_difference(&quote.key, &quoted);
    F::write_addresses(packet, quote.network, &quoted.src, &quoted.dst, addresses)?;
    write_ports(packet, quote.transport, &quoted)?;
    // The quoted transport checksum, where the quote reaches that far and there is one: zero means "none" of UDP only (RFC 768), whose
    // sender writes ones in place of it.
    let mut check = 0;
    let offset = quote.transport + checksum_offset(quote.key.protocol);
    let optional = quote.key.protocol == Protocol::Udp as u8;
    if quote.key.protocol != Protocol::Sctp as u8
        && let Ok(field) = packet.at_mut::<[u8; 2]>(offset)
        && (!optional || *field != [0, 0])
    {
        let old = u16::from_ne_bytes(*field);
        let updated = checksum::updated(*field, checksum::fold32(u64::from(addresses) + u64::from(ports)));
        *field = if optional && updated == [0, 0] { [0xff, 0xff] } else { updated };
        check = u32::from(!old) + u32::from(u16::from_ne_bytes(*field));
    }
    // Whoever speaks for the backend speaks for the frontend; a router speaks for itself.
    let src = if quote.src == quote.key.dst { to.src } else { quote.src };
    let outer = checksum::address_change(&quote.src, &src, &quote.dst, &to.dst);
    F::write_addresses(packet, ETH_LEN, &src, &to.dst, outer)?;
    let difference = u64::from(F::quoted_difference(addresses)) + u64::from(ports) + u64::from(check);
    packet.fix_transport_checksum(quote.icmp + 2, checksum::fold32(difference), 0)?;
    let pseudo = F::icmp_pseudo_difference(outer);
    if pseudo == 0 {
        return Ok(());
    }
    packet.fix_transport_checksum(quote.icmp + 2, pseudo, F::pseudo_header_flags(0))
}

#[inline(always)]
fn write_ports<A: Addr>(packet: &mut impl Frame, offset: usize, to: &FlowKey<A>) -> Step<()> {
    let ([s0, s1], [d0, d1]) = (to.src_port.0.to_ne_bytes(), to.dst_port.0.to_ne_bytes());
    *packet.at_mut::<[u8; 4]>(offset)? = [s0, s1, d0, d1];
    Ok(())
}

/// The bits that say "a change of the pseudo header".
const PSEUDO_HEADER: u32 = aya_ebpf::bindings::BPF_F_PSEUDO_HDR | 1 << 7;
