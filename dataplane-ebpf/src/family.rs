//! What differs between the two address families; everything else is written once, over this trait.

mod v4;
mod v6;

use dataplane_common::{Addr, BePort, Family, FlowKey, Protocol, conntrack::TcpFlags};
use network_types::{tcp::TcpHdr, udp::UdpHdr};

use crate::{
    forward::FibRequest,
    maps::{Backends, Conntrack, Frontends, LocalAddrs, SnatAddrs, Sockets},
    packet::Packet,
    verdict::Step,
};

/// A packet that translation may concern: TCP or UDP with its whole transport header in this packet.
pub struct Headers<A> {
    /// Addresses, ports and protocol.
    pub key: FlowKey<A>,
    /// Offset of the transport header.
    pub transport: usize,
    /// TCP flags; empty for UDP.
    pub tcp: TcpFlags,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// What an ICMP error tells its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens.
    PortUnreachable,
    /// The packet does not fit the next link, which takes this many bytes.
    TooBig(u16),
    /// The hop limit ran out.
    TimeExceeded,
}

/// An address family as the programs handle it.
pub trait Datapath: Family {
    /// EtherType in network byte order.
    const ETHER_TYPE: u16;
    /// Bytes that an ICMP error needs in front of the packet it quotes: network and ICMP header.
    const ICMP_ERROR_LEN: usize;
    /// `AF_INET` or `AF_INET6`.
    const SOCKET_FAMILY: u8;
    /// Flags of `bpf_l4_csum_replace` for a change of the pseudo header.
    fn pseudo_header_flags(protocol: u8) -> u32;

    fn frontends() -> &'static Frontends<Self::Addr>;
    fn backends() -> &'static Backends<Self::Addr>;
    fn conntrack() -> &'static Conntrack<Self::Addr>;
    fn local_addrs() -> &'static LocalAddrs<Self::Addr>;
    fn snat_addrs() -> &'static SnatAddrs<Self::Addr>;
    fn sockets() -> &'static Sockets<Self::Addr>;

    /// Source address of hairpins.
    fn hairpin() -> Self::Addr;

    /// Reads the headers; `None` for anything that is not translated and passes.
    fn parse(packet: &Packet<'_>) -> Option<Headers<Self::Addr>>;

    /// Writes both addresses; `difference` is what that adds to a sum over them.
    fn write_addresses(packet: &mut Packet<'_>, src: &Self::Addr, dst: &Self::Addr, difference: u32) -> Step<()>;

    /// Bytes of the transport header and its payload as the network header says: a short frame may be padded behind them.
    fn transport_len(packet: &Packet<'_>, headers: &Headers<Self::Addr>) -> Step<u32>;

    /// Takes one from the TTL or hop limit.
    fn decrement_hop_limit(packet: &mut Packet<'_>) -> Step<()>;

    /// Sets the addresses of a FIB lookup.
    fn set_fib_addresses(request: &mut FibRequest, src: &Self::Addr, dst: &Self::Addr);

    /// Turns the network header into that of an answer without options' meaning changed: addresses as given, `payload`
    /// bytes behind the header, a fresh hop limit.
    fn write_answer_header(packet: &mut Packet<'_>, headers: &Headers<Self::Addr>, payload: usize) -> Step<()>;

    /// Writes a network and an ICMP header in front of the quoted packet, which now begins [`Self::ICMP_ERROR_LEN`] bytes
    /// later. `quoted` is the number of its transport bytes and `transport_sum` their sum.
    fn write_icmp_error(
        packet: &mut Packet<'_>,
        headers: &Headers<Self::Addr>,
        error: IcmpError,
        quoted: usize,
        transport_sum: u64,
    ) -> Step<()>;
}

/// Reads the transport header at `offset`.
#[inline(always)]
fn parse_transport<A: Addr>(
    packet: &Packet<'_>,
    protocol: u8,
    src: A,
    dst: A,
    offset: usize,
    hop_limit: u8,
) -> Option<Headers<A>> {
    let (src_port, dst_port, tcp) = if protocol == Protocol::Tcp as u8 {
        let header = packet.at::<TcpHdr>(offset)?;
        // The flags are the 14th byte; the bit field around them has no accessor for all of them at once.
        let flags = packet.at::<[u8; 14]>(offset)?[13];
        (header.source, header.dest, TcpFlags(flags))
    } else if protocol == Protocol::Udp as u8 {
        let header = packet.at::<UdpHdr>(offset)?;
        (header.src, header.dst, TcpFlags::default())
    } else {
        return None;
    };
    Some(Headers {
        key: FlowKey {
            src,
            dst,
            src_port: BePort(u16::from_ne_bytes(src_port)),
            dst_port: BePort(u16::from_ne_bytes(dst_port)),
            protocol,
            pad: [0; 3],
        },
        transport: offset,
        tcp,
        hop_limit,
    })
}
