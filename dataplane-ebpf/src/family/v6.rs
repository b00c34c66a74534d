//! IPv6: header layout, no header checksum, ICMPv6.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use dataplane_common::{NodeConfig, Protocol, V6};
use network_types::ip::Ipv6Hdr;

use super::{Datapath, Headers, IcmpError, parse_transport};
use crate::{
    checksum, config,
    forward::FibRequest,
    maps::{self, Backends, Conntrack, Frontends, LocalAddrs, SnatAddrs, Sockets},
    packet::{ETH_LEN, Packet},
    verdict::Step,
};

type Addr = [u32; 4];

const PROTOCOL_ICMP: u32 = 58;
const ANSWER_HOP_LIMIT: u8 = 64;
const SRC_OFFSET: usize = ETH_LEN + 8;
const DST_OFFSET: usize = ETH_LEN + 24;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace`, Linux 6.16: the change of the addresses is already part of the device's sum.
const BPF_F_IPV6: u32 = 1 << 7;

impl Datapath for V6 {
    const ETHER_TYPE: u16 = 0x86dd_u16.to_be();
    const ICMP_ERROR_LEN: usize = Ipv6Hdr::LEN + 8;
    const SOCKET_FAMILY: u8 = 10;

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
    fn hairpin() -> Addr {
        config::hairpin6()
    }

    #[inline(always)]
    fn parse(packet: &Packet<'_>) -> Option<Headers<Addr>> {
        let header = packet.at::<Ipv6Hdr>(ETH_LEN)?;
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        let (src, dst) = (words(&header.src_addr), words(&header.dst_addr));
        parse_transport(packet, header.next_hdr, src, dst, ETH_LEN + Ipv6Hdr::LEN, header.hop_limit)
    }

    #[inline(always)]
    fn write_addresses(packet: &mut Packet<'_>, src: &Addr, dst: &Addr, _difference: u32) -> Step<()> {
        packet.set_words(SRC_OFFSET, *src)?;
        packet.set_words(DST_OFFSET, *dst)
    }

    #[inline(always)]
    fn transport_len(packet: &Packet<'_>, _headers: &Headers<Addr>) -> Step<u32> {
        Ok(u32::from(u16::from_be(packet.half(ETH_LEN + 4)?)))
    }

    #[inline(always)]
    fn decrement_hop_limit(packet: &mut Packet<'_>) -> Step<()> {
        let header = packet.at_mut::<Ipv6Hdr>(ETH_LEN)?;
        header.hop_limit = header.hop_limit.wrapping_sub(1);
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
    fn write_icmp_error(
        packet: &mut Packet<'_>,
        headers: &Headers<Addr>,
        error: IcmpError,
        quoted: usize,
        transport_sum: u64,
    ) -> Step<()> {
        // RFC 4443.
        let (kind, code, mtu): (u32, u32, u16) = match error {
            IcmpError::PortUnreachable => (1, 4, 0),
            IcmpError::TooBig(mtu) => (2, 0, mtu),
            IcmpError::TimeExceeded => (3, 0, 0),
        };
        let [quoted_flow, quoted_length] = packet.words::<2>(ETH_LEN + Self::ICMP_ERROR_LEN)?;
        let payload = 8 + Ipv6Hdr::LEN + quoted;
        let mut icmp = [(kind << 24 | code << 16).to_be(), u32::from(mtu).to_be()];
        // The same two addresses stand in the pseudo header and in the quoted header.
        let addresses = checksum::sum(&headers.key.src) + checksum::sum(&headers.key.dst);
        let pseudo = u64::from((payload as u32).to_be()) + u64::from(PROTOCOL_ICMP.to_be());
        let quoted_sum = u64::from(quoted_flow) + u64::from(quoted_length) + addresses + transport_sum;
        let sum = checksum::sum_words(&icmp) + pseudo + addresses + quoted_sum;
        icmp[0] |= u32::from(checksum::complement(sum)) << 16;

        let next_and_hops = (payload as u32) << 16 | PROTOCOL_ICMP << 8 | u32::from(ANSWER_HOP_LIMIT);
        packet.set_words(ETH_LEN, [0x6000_0000_u32.to_be(), next_and_hops.to_be()])?;
        packet.set_words(SRC_OFFSET, headers.key.dst)?;
        packet.set_words(DST_OFFSET, headers.key.src)?;
        packet.set_words(ETH_LEN + Ipv6Hdr::LEN, icmp)?;
        Ok(())
    }
}

#[inline(always)]
fn words(octets: &[u8; 16]) -> Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
