//! IPv6: header layout, no header checksum, ICMPv6.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use dataplane_common::{DropReason, NodeConfig, Protocol, V6};
use network_types::ip::Ipv6Hdr;

use super::{Datapath, Headers, IcmpError, Network, Part};
use crate::{
    checksum, config,
    forward::FibRequest,
    fragments,
    maps::{
        self, Affinities, Backends, Cidrs, Conntrack, Fragments, Frontends, LocalAddrs, SnatAddrs, Sockets,
        SourceRanges, Ways,
    },
    packet::{ETH_LEN, Frame, Packet, TCP_LEN},
    verdict::Step,
};

type Addr = [u32; 4];

const ANSWER_HOP_LIMIT: u8 = 64;
const SRC_IN_HEADER: usize = 8;
const DST_IN_HEADER: usize = 24;
const SRC_OFFSET: usize = ETH_LEN + SRC_IN_HEADER;
const DST_OFFSET: usize = ETH_LEN + DST_IN_HEADER;
const FRAGMENT: u8 = 44;
/// Bits of the fragment header's offset field (RFC 8200, 4.5).
const FRAGMENT_OFFSET: u16 = 0xfff8;
const MORE_FRAGMENTS: u16 = 1;
/// Parts of a datagram as [`behind_extensions`] returns them.
const WHOLE: u64 = 0;
const FIRST: u64 = 1;
const LATER: u64 = 2;
/// Offsets that extension headers can lead to; the verifier wants to see a bound.
const TRANSPORT_MASK: u64 = 0x7ff;
/// Offset of the first extension header.
const EXTENSIONS_OFFSET: usize = ETH_LEN + Ipv6Hdr::LEN;
/// Bytes behind the plain network header that an ICMP error quotes at most: as many of those that are made readable as the sum
/// takes.
const QUOTED_LINEAR: usize = (EXTENSIONS_LINEAR as usize - EXTENSIONS_OFFSET) / 4 * 4;
/// Extension headers are looked for in this many bytes.
const EXTENSIONS_LINEAR: u32 = 256;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace`, Linux 6.16: the change of the addresses is already part of the device's sum.
const BPF_F_IPV6: u32 = 1 << 7;

impl Datapath for V6 {
    const ETHER_TYPE: u16 = 0x86dd_u16.to_be();
    const ICMP: u8 = 58;
    const HEADER_LEN: usize = Ipv6Hdr::LEN;
    const ICMP_ERROR_LEN: usize = Ipv6Hdr::LEN + 8;
    const SOCKET_FAMILY: u8 = 10;
    const FRAGMENTS_NAME_PROTOCOL: bool = false;

    #[inline(always)]
    fn pseudo_header_flags(protocol: u8) -> u32 {
        let family = if config::has(NodeConfig::IPV6_CHECKSUM_FLAG) { BPF_F_IPV6 } else { 0 };
        // A UDP checksum is mandatory (RFC 8200, 8.1), and zero is sent as its complement.
        let mangled = if protocol == Protocol::Udp as u8 { BPF_F_MARK_MANGLED_0 } else { 0 };
        BPF_F_PSEUDO_HDR | family | mangled
    }

    #[inline(always)]
    fn frontends() -> &'static Frontends<Addr> {
        &maps::FRONTENDS6
    }

    #[inline(always)]
    fn backends() -> &'static Backends<Addr> {
        &maps::BACKENDS6
    }

    #[inline(always)]
    fn conntrack() -> &'static Conntrack<Addr> {
        &maps::CONNTRACK6
    }

    #[inline(always)]
    fn local_addrs() -> &'static LocalAddrs<Addr> {
        &maps::LOCAL_ADDRS6
    }

    #[inline(always)]
    fn snat_addrs() -> &'static SnatAddrs<Addr> {
        &maps::SNAT_ADDRS6
    }

    #[inline(always)]
    fn sockets() -> &'static Sockets<Addr> {
        &maps::SOCKETS6
    }

    #[inline(always)]
    fn affinity() -> &'static Affinities<Addr> {
        &maps::AFFINITY6
    }

    #[inline(always)]
    fn fragments() -> &'static Fragments<Addr> {
        &maps::FRAGMENTS6
    }

    #[inline(always)]
    fn source_ranges() -> &'static SourceRanges<Addr> {
        &maps::SOURCE_RANGES6
    }

    #[inline(always)]
    fn cidrs() -> &'static Cidrs<Addr> {
        &maps::CIDRS6
    }

    #[inline(always)]
    fn ways() -> &'static Ways<Addr> {
        &maps::WAYS6
    }

    #[inline(always)]
    fn is_forwarded(src: &Addr, dst: &Addr) -> bool {
        // Global unicast, of which everything that routers forward today is (RFC 4291, 2.4), and unique local addresses (RFC 4193).
        let is_routed = |addr: &Addr| {
            let first = addr[0].to_ne_bytes()[0];
            first & 0xe0 == 0x20 || first & 0xfe == 0xfc
        };
        is_routed(src) && is_routed(dst)
    }

    #[inline(always)]
    fn hairpin() -> Addr {
        config::hairpin6()
    }

    #[inline(always)]
    fn plain_network(packet: &impl Frame, offset: usize) -> Option<Network<Addr>> {
        let [flow, length_and_next] = packet.words::<2>(offset).ok()?;
        if flow & 0xf0 != 0x60 {
            return None;
        }
        Some(Network {
            src: packet.words(offset + SRC_IN_HEADER).ok()?,
            dst: packet.words(offset + DST_IN_HEADER).ok()?,
            protocol: (length_and_next >> 16) as u8,
            transport: offset + Ipv6Hdr::LEN,
            hop_limit: (length_and_next >> 24) as u8,
            part: Part::Whole,
            datagram: 0,
        })
    }

    #[inline(always)]
    fn network(packet: &mut Packet<'_>, offset: usize) -> Option<Network<Addr>> {
        let mut network = Self::plain_network(packet, offset)?;
        if is_extension(network.protocol) {
            packet.pull(EXTENSIONS_LINEAR);
            let behind = behind_extensions(packet.raw(), network.transport as u32, u32::from(network.protocol));
            network.transport = (behind & TRANSPORT_MASK) as usize;
            network.protocol = (behind >> 16) as u8;
            network.part = match (behind >> 24) as u8 {
                0 => Part::Whole,
                1 => Part::First,
                _ => Part::Later,
            };
            network.datagram = (behind >> 32) as u32;
        }
        Some(network)
    }

    #[inline(always)]
    fn continues_datagram(protocol: u8) -> bool {
        // The header that all fragments name is the first one of the datagram, which may come before its transport header.
        Protocol::from_number(protocol).is_some() || is_extension(protocol)
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Unreachable, too big, time exceeded, parameter problem (RFC 4443).
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn is_answerable(headers: &Headers<Addr>) -> bool {
        headers.part != Part::Later && headers.transport + TCP_LEN as usize <= EXTENSIONS_OFFSET + QUOTED_LINEAR
    }

    #[inline(always)]
    fn lends_header(headers: &Headers<Addr>) -> bool {
        headers.transport == EXTENSIONS_OFFSET
    }

    #[inline(always)]
    fn write_addresses(packet: &mut impl Frame, offset: usize, src: &Addr, dst: &Addr, _difference: u32) -> Step<()> {
        packet.set_words(offset + SRC_IN_HEADER, *src)?;
        packet.set_words(offset + DST_IN_HEADER, *dst)
    }

    #[inline(always)]
    fn quoted_difference(addresses: u32) -> u32 {
        addresses
    }

    #[inline(always)]
    fn icmp_pseudo_difference(addresses: u32) -> u32 {
        addresses
    }

    #[inline(always)]
    fn transport_len(packet: &impl Frame, _headers: &Headers<Addr>) -> Step<u32> {
        Ok(u32::from(u16::from_be(packet.half(ETH_LEN + 4)?)))
    }

    #[inline(always)]
    fn decrement_hop_limit(packet: &mut impl Frame) -> Step<()> {
        let header = packet.at_mut::<Ipv6Hdr>(ETH_LEN)?;
        let old = u16::from_ne_bytes([header.next_hdr, header.hop_limit]);
        header.hop_limit = header.hop_limit.wrapping_sub(1);
        let new = u16::from_ne_bytes([header.next_hdr, header.hop_limit]);
        // No checksum of the header itself makes up for it, as IPv4's does.
        packet.change_device_sum(u32::from(!old) + u32::from(new));
        Ok(())
    }

    #[inline(always)]
    fn set_fib_addresses(request: &mut FibRequest, src: &Addr, dst: &Addr) {
        request.src = *src;
        request.dst = *dst;
    }

    #[inline(always)]
    fn write_answer_header(packet: &mut Packet<'_>, headers: &Headers<Addr>, payload: usize) -> Step<()> {
        let header = packet.at_mut::<Ipv6Hdr>(ETH_LEN)?;
        header.payload_len = (payload as u16).to_be_bytes();
        header.hop_limit = ANSWER_HOP_LIMIT;
        packet.set_words(SRC_OFFSET, headers.key.dst)?;
        packet.set_words(DST_OFFSET, headers.key.src)
    }

    #[inline(always)]
    fn extensions_sum(packet: &mut Packet<'_>, headers: &Headers<Addr>, transport_sum: u64) -> Step<u64> {
        if headers.transport == EXTENSIONS_OFFSET {
            return Ok(0);
        }
        // The verifier wants constant lengths: zeroes behind the packet add nothing.
        let len = packet.len() as usize;
        packet.resize(EXTENSIONS_OFFSET + QUOTED_LINEAR)?;
        let quoted = packet.at::<[u8; QUOTED_LINEAR]>(EXTENSIONS_OFFSET).ok_or(DropReason::RejectFailed)?;
        let sum = checksum::sum_bytes(quoted);
        packet.resize(len)?;
        Ok(u64::from(sum) + u64::from(!checksum::fold32(transport_sum)))
    }

    #[inline(always)]
    fn write_icmp_error(
        packet: &mut Packet<'_>,
        headers: &Headers<Addr>,
        error: IcmpError,
        quoted: usize,
        sum: u64,
    ) -> Step<()> {
        /// Where the network header names what follows.
        const NEXT_HEADER: u16 = 6;
        // RFC 4443. An unknown next header is pointed at.
        let (kind, code, value): (u32, u32, u16) = match error {
            IcmpError::PortUnreachable => (1, 4, 0),
            IcmpError::ProtocolUnreachable => (4, 1, NEXT_HEADER),
            IcmpError::TooBig(mtu) => (2, 0, mtu),
            IcmpError::TimeExceeded => (3, 0, 0),
        };
        let [quoted_flow, quoted_length] = packet.words::<2>(ETH_LEN + Self::ICMP_ERROR_LEN)?;
        let payload = 8 + (headers.transport - ETH_LEN) + quoted;
        let mut icmp = [(kind << 24 | code << 16).to_be(), u32::from(value).to_be()];
        // The same two addresses stand in the pseudo header and in the quoted header.
        let addresses = checksum::sum(&headers.key.src) + checksum::sum(&headers.key.dst);
        let pseudo = u64::from((payload as u32).to_be()) + u64::from(u32::from(Self::ICMP).to_be());
        let quoted_sum = u64::from(quoted_flow) + u64::from(quoted_length) + addresses + sum;
        icmp[0] |= u32::from(checksum::complement(checksum::sum_words(&icmp) + pseudo + addresses + quoted_sum)) << 16;

        let next_and_hops = (payload as u32) << 16 | u32::from(Self::ICMP) << 8 | u32::from(ANSWER_HOP_LIMIT);
        packet.set_words(ETH_LEN, [0x6000_0000_u32.to_be(), next_and_hops.to_be()])?;
        packet.set_words(SRC_OFFSET, headers.key.dst)?;
        packet.set_words(DST_OFFSET, headers.key.src)?;
        packet.set_words(ETH_LEN + Ipv6Hdr::LEN, icmp)?;
        Ok(())
    }
}

/// Skips extension headers (RFC 8200, 4) from `transport` on. Four of them are one more than any sender has use for; behind
/// more, the protocol is one that is not translated.
///
/// What follows a later fragment's header is what its first fragment has said: the header itself names the first one of the datagram,
/// which may be another extension header.
///
/// Returns the offset of what follows, its protocol from bit 16 on, the part of a datagram from bit 24 on (0 whole, 1 first,
/// 2 later) and the datagram's identification from bit 32 on. One number, and a global function for the kernel, which verifies it
/// once instead of once per call, and knows nothing of its result whichever way it went.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn behind_extensions(skb: *mut __sk_buff, transport: u32, protocol: u32) -> u64 {
    // SAFETY: the caller passes the context of the running program.
    let packet = unsafe { Packet::pulled(skb) };
    let (mut transport, mut protocol) = (transport & TRANSPORT_MASK as u32, protocol as u8);
    let network = transport.wrapping_sub(Ipv6Hdr::LEN as u32) as usize & TRANSPORT_MASK as usize;
    let (mut part, mut datagram) = (WHOLE, 0);
    for _ in 0..4 {
        if !is_extension(protocol) || part == LATER {
            break;
        }
        let Ok([first, second]) = packet.words::<2>(transport as usize) else { break };
        let mut units = u32::from((first >> 8) as u8) + 1;
        if protocol == FRAGMENT {
            let offset_and_flags = u16::from_be((first >> 16) as u16);
            datagram = second;
            units = 1;
            if offset_and_flags & FRAGMENT_OFFSET != 0 {
                part = LATER;
            } else if offset_and_flags & MORE_FRAGMENTS != 0 {
                part = FIRST;
            }
        }
        protocol = first as u8;
        transport = (transport + units * 8) & TRANSPORT_MASK as u32;
    }
    if part == LATER
        && let Ok(src) = packet.words(network + SRC_IN_HEADER)
        && let Ok(dst) = packet.words(network + DST_IN_HEADER)
        && let Some(first) = fragments::recall::<V6>(&fragments::key::<V6>(src, dst, datagram, protocol))
    {
        protocol = first.protocol as u8;
    }
    u64::from(transport) | u64::from(protocol) << 16 | part << 24 | u64::from(datagram) << 32
}

/// Hop-by-hop options, routing, fragment and destination options.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | FRAGMENT | 60)
}
