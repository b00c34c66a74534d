//! IPv4: header layout, header checksum, ICMP.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use dataplane_common::{Announcement, BePort, Protocol, V4};
use network_types::ip::Ipv4Hdr;

use super::{Datapath, Headers, IcmpError, Network, Part};
use crate::{
    checksum, config,
    forward::FibRequest,
    maps::{
        self, Affinities, Backends, Cidrs, Conntrack, Fragments, Frontends, LocalAddrs, SnatAddrs, Sockets,
        SourceRanges, Ways,
    },
    packet::{ETH_LEN, Frame, Packet, TCP_LEN},
    verdict::Step,
};

type Addr = [u32; 1];

const ANSWER_TTL: u8 = 64;
/// Bits of the flags and offset field (RFC 791).
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Version and length of a header without options.
const PLAIN: u8 = 0x45;
/// The same of one that tells of a frontend.
const ANNOUNCED: u8 = PLAIN + (Announcement::LEN / 4) as u8;
/// Offset of the options.
const OPTIONS: usize = ETH_LEN + Ipv4Hdr::LEN;

/// Sets the header's version and length, adds `more` to the packet's, and fixes its checksum: the change of the options adds
/// `options` to the sum over it.
#[inline(always)]
fn resize(packet: &mut Packet<'_>, vihl: u8, more: u16, options: u64) -> Step<()> {
    let header = packet.at_mut::<Ipv4Hdr>(ETH_LEN)?;
    let old_start = u16::from_ne_bytes([header.vihl, header.tos]);
    let old_len = header.tot_len;
    header.vihl = vihl;
    header.tot_len = u16::from_be_bytes(old_len).wrapping_add(more).to_be_bytes();
    let new_start = u16::from_ne_bytes([header.vihl, header.tos]);
    let difference = u64::from(!old_start)
        + u64::from(new_start)
        + u64::from(!u16::from_ne_bytes(old_len))
        + u64::from(u16::from_ne_bytes(header.tot_len))
        + options;
    header.check = checksum::updated(header.check, checksum::fold32(difference));
    Ok(())
}

impl Datapath for V4 {
    const ETHER_TYPE: u16 = 0x0800_u16.to_be();
    const ICMP: u8 = 1;
    const HEADER_LEN: usize = Ipv4Hdr::LEN;
    const ICMP_ERROR_LEN: usize = Ipv4Hdr::LEN + 8;
    const SOCKET_FAMILY: u8 = 2;
    const FRAGMENTS_NAME_PROTOCOL: bool = true;

    #[inline(always)]
    fn pseudo_header_flags(protocol: u8) -> u32 {
        // A UDP checksum of zero means "none" (RFC 768) and must neither be changed nor arise.
        if protocol == Protocol::Udp as u8 { BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 } else { BPF_F_PSEUDO_HDR }
    }

    #[inline(always)]
    fn frontends() -> &'static Frontends<Addr> {
        &maps::FRONTENDS4
    }

    #[inline(always)]
    fn backends() -> &'static Backends<Addr> {
        &maps::BACKENDS4
    }

    #[inline(always)]
    fn conntrack() -> &'static Conntrack<Addr> {
        &maps::CONNTRACK4
    }

    #[inline(always)]
    fn local_addrs() -> &'static LocalAddrs<Addr> {
        &maps::LOCAL_ADDRS4
    }

    #[inline(always)]
    fn snat_addrs() -> &'static SnatAddrs<Addr> {
        &maps::SNAT_ADDRS4
    }

    #[inline(always)]
    fn sockets() -> &'static Sockets<Addr> {
        &maps::SOCKETS4
    }

    #[inline(always)]
    fn affinity() -> &'static Affinities<Addr> {
        &maps::AFFINITY4
    }

    #[inline(always)]
    fn fragments() -> &'static Fragments<Addr> {
        &maps::FRAGMENTS4
    }

    #[inline(always)]
    fn source_ranges() -> &'static SourceRanges<Addr> {
        &maps::SOURCE_RANGES4
    }

    #[inline(always)]
    fn cidrs() -> &'static Cidrs<Addr> {
        &maps::CIDRS4
    }

    #[inline(always)]
    fn ways() -> &'static Ways<Addr> {
        &maps::WAYS4
    }

    #[inline(always)]
    fn is_forwarded(src: &Addr, _dst: &Addr) -> bool {
        // Martian sources (`ip_route_input_slow`): 0.0.0.0/8, multicast and broadcast. The FIB knows loopback addresses.
        let first = src[0].to_ne_bytes()[0];
        first != 0 && first < 224
    }

    #[inline(always)]
    fn hairpin() -> Addr {
        config::hairpin4()
    }

    #[inline(always)]
    fn plain_network(packet: &impl Frame, offset: usize) -> Option<Network<Addr>> {
        let header = packet.at::<Ipv4Hdr>(offset)?;
        let header_len = usize::from(header.vihl & 0x0f) * 4;
        if header.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN {
            return None;
        }
        let fragment = u16::from_be_bytes(header.frags);
        let part = if fragment & FRAGMENT_OFFSET != 0 {
            Part::Later
        } else if fragment & MORE_FRAGMENTS != 0 {
            Part::First
        } else {
            Part::Whole
        };
        Some(Network {
            src: [u32::from_ne_bytes(header.src_addr)],
            dst: [u32::from_ne_bytes(header.dst_addr)],
            protocol: header.proto,
            transport: offset + header_len,
            hop_limit: header.ttl,
            part,
            datagram: u32::from(u16::from_ne_bytes(header.id)),
        })
    }

    #[inline(always)]
    fn network(packet: &mut Packet<'_>, offset: usize) -> Option<Network<Addr>> {
        let network = Self::plain_network(packet, offset)?;
        if network.transport > offset + Ipv4Hdr::LEN {
            packet.pull(network.transport as u32 + TCP_LEN);
        }
        Some(network)
    }

    const ANNOUNCEMENT_LEN: usize = Announcement::LEN;

    #[inline(always)]
    fn may_be_announced(packet: &impl Frame) -> bool {
        packet.at::<Ipv4Hdr>(ETH_LEN).is_some_and(|header| header.vihl == ANNOUNCED)
    }

    #[inline(always)]
    fn announced(packet: &impl Frame) -> Option<(Addr, BePort)> {
        if !Self::may_be_announced(packet) {
            return None;
        }
        Announcement(packet.words::<2>(OPTIONS).ok()?).frontend()
    }

    #[inline(always)]
    fn announce(packet: &mut Packet<'_>, addr: &Addr, port: BePort) -> Step<()> {
        packet.resize_network_header(Announcement::LEN as i32)?;
        packet.pull(OPTIONS as u32 + Announcement::LEN as u32);
        let option = Announcement::new(*addr, port).0;
        packet.set_words(OPTIONS, option)?;
        resize(packet, ANNOUNCED, Announcement::LEN as u16, checksum::sum_words(&option))
    }

    #[inline(always)]
    fn withdraw(packet: &mut Packet<'_>) -> Step<()> {
        let option = packet.words::<2>(OPTIONS)?;
        // Cleared first, so that the kernel takes nothing from a sum that a device has computed over the whole packet: its header
        // sums to nothing with the option and without it.
        packet.set_words(OPTIONS, [0, 0])?;
        packet.resize_network_header(-(Announcement::LEN as i32))?;
        packet.pull(OPTIONS as u32);
        let without = option.map(|word| !word);
        resize(packet, PLAIN, (Announcement::LEN as u16).wrapping_neg(), checksum::sum_words(&without))
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem (RFC 792); source quench is obsolete (RFC 6633).
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_answerable(headers: &Headers<Addr>) -> bool {
        headers.part != Part::Later
    }

    #[inline(always)]
    fn may_be_cut(packet: &impl Frame) -> bool {
        packet.at::<Ipv4Hdr>(ETH_LEN).is_some_and(|header| u16::from_be_bytes(header.frags) & DONT_FRAGMENT == 0)
    }

    #[inline(always)]
    fn lends_header(headers: &Headers<Addr>) -> bool {
        headers.part == Part::Whole
    }

    #[inline(always)]
    fn write_addresses(packet: &mut impl Frame, offset: usize, src: &Addr, dst: &Addr, difference: u32) -> Step<()> {
        let header = packet.at_mut::<Ipv4Hdr>(offset)?;
        header.src_addr = src[0].to_ne_bytes();
        header.dst_addr = dst[0].to_ne_bytes();
        header.check = checksum::updated(header.check, difference);
        Ok(())
    }

    #[inline(always)]
    fn quoted_difference(_addresses: u32) -> u32 {
        0
    }

    #[inline(always)]
    fn icmp_pseudo_difference(_addresses: u32) -> u32 {
        0
    }

    #[inline(always)]
    fn transport_len(packet: &impl Frame, headers: &Headers<Addr>) -> Step<u32> {
        let total = u16::from_be(packet.half(ETH_LEN + 2)?);
        Ok(u32::from(total).wrapping_sub((headers.transport - ETH_LEN) as u32))
    }

    #[inline(always)]
    fn decrement_hop_limit(packet: &mut impl Frame) -> Step<()> {
        let header = packet.at_mut::<Ipv4Hdr>(ETH_LEN)?;
        let old = u16::from_ne_bytes([header.ttl, header.proto]);
        header.ttl = header.ttl.wrapping_sub(1);
        let new = u16::from_ne_bytes([header.ttl, header.proto]);
        header.check = checksum::updated(header.check, u32::from(!old) + u32::from(new));
        Ok(())
    }

    #[inline(always)]
    fn set_fib_addresses(request: &mut FibRequest, src: &Addr, dst: &Addr) {
        request.src[0] = src[0];
        request.dst[0] = dst[0];
    }

    #[inline(always)]
    fn write_answer_header(packet: &mut Packet<'_>, headers: &Headers<Addr>, payload: usize) -> Step<()> {
        let header_len = headers.transport - ETH_LEN;
        let header = packet.at_mut::<Ipv4Hdr>(ETH_LEN)?;
        let old_len = u16::from_ne_bytes(header.tot_len);
        let old_ttl = u16::from_ne_bytes([header.ttl, header.proto]);
        // Swapped addresses leave the sum as it is.
        header.src_addr = headers.key.dst[0].to_ne_bytes();
        header.dst_addr = headers.key.src[0].to_ne_bytes();
        header.tot_len = ((header_len + payload) as u16).to_be_bytes();
        header.ttl = ANSWER_TTL;
        let new_len = u16::from_ne_bytes(header.tot_len);
        let new_ttl = u16::from_ne_bytes([header.ttl, header.proto]);
        let difference = u32::from(!old_len) + u32::from(new_len) + u32::from(!old_ttl) + u32::from(new_ttl);
        header.check = checksum::updated(header.check, difference);
        Ok(())
    }

    #[inline(always)]
    fn write_icmp_error(
        packet: &mut Packet<'_>,
        headers: &Headers<Addr>,
        error: IcmpError,
        quoted: usize,
        sum: u64,
    ) -> Step<()> {
        // RFC 792, RFC 1191.
        let (kind, code, mtu): (u32, u32, u16) = match error {
            IcmpError::PortUnreachable => (3, 3, 0),
            IcmpError::ProtocolUnreachable => (3, 2, 0),
            IcmpError::TooBig(mtu) => (3, 4, mtu),
            IcmpError::TimeExceeded => (11, 0, 0),
        };
        let length = Self::ICMP_ERROR_LEN + (headers.transport - ETH_LEN) + quoted;
        // Words in network order, as RFC 791 draws them.
        let version_and_length = 0x4500_0000 | length as u32;
        let ttl_and_protocol = u32::from(ANSWER_TTL) << 24 | u32::from(Self::ICMP) << 16;
        let [src, dst] = [headers.key.dst[0], headers.key.src[0]];
        let mut network = [version_and_length.to_be(), 0, ttl_and_protocol.to_be(), src, dst];
        network[2] |= u32::from(checksum::complement(checksum::sum_words(&network))) << 16;

        let mut icmp = [(kind << 24 | code << 16).to_be(), u32::from(mtu).to_be()];
        // The quoted network header adds nothing: with its own checksum it sums to zero.
        icmp[0] |= u32::from(checksum::complement(checksum::sum_words(&icmp) + sum)) << 16;
        packet.set_words(ETH_LEN, network)?;
        packet.set_words(ETH_LEN + Ipv4Hdr::LEN, icmp)?;
        Ok(())
    }
}
