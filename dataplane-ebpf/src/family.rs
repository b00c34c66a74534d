//! What differs between the two address families; everything else is written once, over this trait.

mod v4;
mod v6;

use crate::{
    forward::FibRequest,
    maps::{
        Affinities, Backends, Cidrs, Conntrack, Fragments, Frontends, LocalAddrs, SnatAddrs, Sockets, SourceRanges,
        Ways,
    },
    packet::{ETH_LEN, Frame, Packet},
    verdict::Step,
};
use dataplane_common::{Addr, BePort, Family, FlowKey, Protocol, TcpFlags};

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its first fragment, with the transport header.
    First,
    /// A later fragment: addresses only.
    Later,
}

/// A packet that translation may concern: TCP, UDP or SCTP.
pub struct Headers<A> {
    /// Addresses, ports and protocol; a later fragment has no ports, and maybe another protocol, until its datagram is found.
    pub key: FlowKey<A>,
    /// Offset of the transport header.
    pub transport: usize,
    /// TCP flags; empty for other protocols.
    pub tcp: TcpFlags,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Which part of a datagram it is.
    pub part: Part,
    /// The datagram's identification, as it lies in the packet, unless it is whole.
    pub datagram: u32,
}

/// What a packet turns out to be.
pub enum Parsed<A> {
    /// Nothing that is translated: it passes.
    Other,
    /// Part of a flow.
    Flow(Headers<A>),
    /// An ICMP message, which may be an error about a flow.
    Icmp,
}

/// An ICMP error and the packet it quotes.
pub struct Quote<A> {
    /// The quoted packet's addresses, ports and protocol.
    pub key: FlowKey<A>,
    /// Who sent the error.
    pub src: A,
    /// Who gets it.
    pub dst: A,
    /// Offset of the ICMP header.
    pub icmp: usize,
    /// Offset of the quoted network header.
    pub network: usize,
    /// Offset of the quoted transport header.
    pub transport: usize,
    /// TTL or hop limit of the packet that carries the error.
    pub hop_limit: u8,
}

/// What an ICMP error tells its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens.
    PortUnreachable,
    /// Nobody listens, said in the way that ends an association.
    ProtocolUnreachable,
    /// The packet does not fit the next link, which takes this many bytes.
    TooBig(u16),
    /// The hop limit ran out.
    TimeExceeded,
}

/// An address family as the programs handle it.
pub trait Datapath: Family {
    /// EtherType in network byte order.
    const ETHER_TYPE: u16;
    /// IANA number of the family's ICMP.
    const ICMP: u8;
    /// Bytes of the network header without what may extend it.
    const HEADER_LEN: usize;
    /// Bytes that an ICMP error needs in front of the packet it quotes: network and ICMP header.
    const ICMP_ERROR_LEN: usize;
    /// `AF_INET` or `AF_INET6`.
    const SOCKET_FAMILY: u8;
    /// Whether the protocol is part of what the fragments of one datagram have in common.
    const FRAGMENTS_NAME_PROTOCOL: bool;
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

    fn affinity() -> &'static Affinities<Self::Addr>;
    fn fragments() -> &'static Fragments<Self::Addr>;
    fn source_ranges() -> &'static SourceRanges<Self::Addr>;
    fn cidrs() -> &'static Cidrs<Self::Addr>;
    fn ways() -> &'static Ways<Self::Addr>;

    /// Whether routers forward packets between these addresses, as far as the FIB does not say so.
    fn is_forwarded(src: &Self::Addr, dst: &Self::Addr) -> bool;

    /// Reads the network header at `offset` without what may extend it; `None` for what is cut short or of another version.
    fn plain_network(packet: &impl Frame, offset: usize) -> Option<Network<Self::Addr>>;

    /// Reads the network header at `offset` with all that extends it.
    #[inline(always)]
    fn network(packet: &mut Packet<'_>, offset: usize) -> Option<Network<Self::Addr>> {
        Self::plain_network(packet, offset)
    }

    /// Bytes that tell a backend's node of the frontend, with direct server return; zero for a family that has none.
    const ANNOUNCEMENT_LEN: usize = 0;

    /// Whether the network header is as long as one that tells of a frontend.
    #[inline(always)]
    fn may_be_announced(_packet: &impl Frame) -> bool {
        false
    }

    /// The frontend that the packet tells of.
    #[inline(always)]
    fn announced(_packet: &impl Frame) -> Option<(Self::Addr, BePort)> {
        None
    }

    /// Makes the packet, whose network header is the plain one, tell of the frontend at `addr` and `port`.
    #[inline(always)]
    fn announce(_packet: &mut Packet<'_>, _addr: &Self::Addr, _port: BePort) -> Step<()> {
        Ok(())
    }

    /// Takes what [`Datapath::announced`] reads out of the packet again.
    #[inline(always)]
    fn withdraw(_packet: &mut Packet<'_>) -> Step<()> {
        Ok(())
    }

    /// Whether a later fragment whose header names `protocol` may be part of a flow.
    #[inline(always)]
    fn continues_datagram(protocol: u8) -> bool {
        Protocol::from_number(protocol).is_some()
    }

    /// Whether an ICMP message of this type is an error that may be about a flow.
    fn is_icmp_error(kind: u8) -> bool;

    /// Whether an ICMP error can be made out of the packet: it is no later fragment, and not too much is in front of its transport
    /// header.
    fn is_answerable(headers: &Headers<Self::Addr>) -> bool;

    /// Whether routers may cut the packet into fragments.
    #[inline(always)]
    fn may_be_cut(_packet: &impl Frame) -> bool {
        false
    }

    /// Whether an answer of the same protocol can have the packet's own network header.
    fn lends_header(headers: &Headers<Self::Addr>) -> bool;

    /// Writes both addresses of the network header at `offset`; `difference` is what that adds to a sum over them.
    fn write_addresses(
        packet: &mut impl Frame,
        offset: usize,
        src: &Self::Addr,
        dst: &Self::Addr,
        difference: u32,
    ) -> Step<()>;

    /// What a change of a quoted packet's addresses adds to the ICMP checksum. IPv4's own header checksum makes up for it.
    fn quoted_difference(addresses: u32) -> u32;

    /// What a change of the outer addresses adds to the ICMP checksum: only ICMPv6 has a pseudo header.
    fn icmp_pseudo_difference(addresses: u32) -> u32;

    /// Bytes of the transport header and its payload as the network header says: a short frame may be padded behind them.
    fn transport_len(packet: &impl Frame, headers: &Headers<Self::Addr>) -> Step<u32>;

    /// Takes one from the TTL or hop limit.
    fn decrement_hop_limit(packet: &mut impl Frame) -> Step<()>;

    /// Sets the addresses of a FIB lookup.
    fn set_fib_addresses(request: &mut FibRequest, src: &Self::Addr, dst: &Self::Addr);

    /// Turns the network header into that of an answer without options' meaning changed: addresses as given, `payload`
    /// bytes behind the header, a fresh hop limit.
    fn write_answer_header(packet: &mut Packet<'_>, headers: &Headers<Self::Addr>, payload: usize) -> Step<()>;

    /// Sum over what an ICMP error quotes between the plain network header and the transport header, as far as nothing there makes up
    /// for it. The packet has been cut to what is quoted, and `transport_sum` is the sum over its transport bytes.
    #[inline(always)]
    fn extensions_sum(_packet: &mut Packet<'_>, _headers: &Headers<Self::Addr>, _transport_sum: u64) -> Step<u64> {
        Ok(0)
    }

    /// Writes a network and an ICMP header in front of the quoted packet, which now begins [`Self::ICMP_ERROR_LEN`] bytes
    /// later. `quoted` is the number of its transport bytes, `sum` that over them and whatever [`Self::extensions_sum`] is over.
    fn write_icmp_error(
        packet: &mut Packet<'_>,
        headers: &Headers<Self::Addr>,
        error: IcmpError,
        quoted: usize,
        sum: u64,
    ) -> Step<()>;
}

/// What the network header says of a packet, before its transport header is read.
pub struct Network<A> {
    src: A,
    dst: A,
    protocol: u8,
    transport: usize,
    hop_limit: u8,
    part: Part,
    datagram: u32,
}

/// Reads a packet's headers; `None` for what is cut short.
#[inline(always)]
pub fn parse<F: Datapath>(packet: &mut Packet<'_>) -> Option<Parsed<F::Addr>> {
    let network = F::network(packet, ETH_LEN)?;
    if network.protocol == F::ICMP {
        return Some(Parsed::Icmp);
    }
    Some(parse_transport::<F>(packet, &network).map_or(Parsed::Other, Parsed::Flow))
}

/// Reads the headers of a TCP segment or UDP datagram that is whole and has nothing between its headers; `None` for
/// everything else.
#[inline(always)]
pub fn parse_plain<F: Datapath>(packet: &impl Frame) -> Option<Headers<F::Addr>> {
    let network = F::plain_network(packet, ETH_LEN)?;
    let translated = network.protocol == Protocol::Tcp as u8 || network.protocol == Protocol::Udp as u8;
    if !translated || network.part != Part::Whole || network.transport != ETH_LEN + F::HEADER_LEN {
        return None;
    }
    // The constant is what the verifier wants to see.
    let headers = parse_transport::<F>(packet, &Network { transport: ETH_LEN + F::HEADER_LEN, ..network })?;
    // What is cut short is for the stack to judge, and so is what is longer than its header can say.
    let len = F::transport_len(packet, &headers).ok()?;
    (len >= 8 && len + (ETH_LEN + F::HEADER_LEN) as u32 <= packet.len()).then_some(headers)
}

/// What is read first of a plain TCP segment.
pub struct Segment<A> {
    pub src: A,
    pub dst: A,
    pub flags: TcpFlags,
}

/// Reads what tells whether a TCP segment may be part of a flow; `None` for everything else, for what has anything between its headers,
/// and for what is cut short.
#[inline(always)]
pub fn plain_segment<F: Datapath>(packet: &impl Frame) -> Option<Segment<F::Addr>> {
    let Network { src, dst, protocol, transport, part, .. } = F::plain_network(packet, ETH_LEN)?;
    if protocol != Protocol::Tcp as u8 || part != Part::Whole || transport != ETH_LEN + F::HEADER_LEN {
        return None;
    }
    Some(Segment { src, dst, flags: tcp_flags(packet.words(ETH_LEN + F::HEADER_LEN).ok()?) })
}

/// The flags of a TCP header.
#[inline(always)]
const fn tcp_flags([_, _, _, offset_and_flags, _]: [u32; 5]) -> TcpFlags {
    // The 14th byte.
    TcpFlags((offset_and_flags >> 8) as u8)
}

/// Source and destination of a packet, whatever it carries; `None` for what is cut short.
#[inline(always)]
pub fn addresses<F: Datapath>(packet: &impl Frame) -> Option<(F::Addr, F::Addr)> {
    F::plain_network(packet, ETH_LEN).map(|network| (network.src, network.dst))
}

/// Reads an ICMP error and the packet it quotes; `None` for other messages.
#[inline(always)]
pub fn parse_error<F: Datapath>(packet: &mut Packet<'_>) -> Option<Quote<F::Addr>> {
    packet.pull(QUOTE_LINEAR);
    let network = F::network(packet, ETH_LEN)?;
    let [kind] = *packet.at::<[u8; 1]>(network.transport)?;
    if !F::is_icmp_error(kind) || network.part != Part::Whole {
        return None;
    }
    let quoted = F::network(packet, network.transport + ICMP_LEN)?;
    Some(Quote {
        key: parse_quoted_ports(packet, &quoted)?,
        src: network.src,
        dst: network.dst,
        icmp: network.transport,
        network: network.transport + ICMP_LEN,
        transport: quoted.transport,
        hop_limit: network.hop_limit,
    })
}

/// Reads the transport header behind a network header; `None` for other protocols and for what is cut short.
#[inline(always)]
fn parse_transport<F: Datapath>(packet: &impl Frame, network: &Network<F::Addr>) -> Option<Headers<F::Addr>> {
    let Network { src, dst, protocol, transport, hop_limit, part, datagram } = *network;
    let (ports, tcp) = if part == Part::Later {
        F::continues_datagram(protocol).then_some((0, TcpFlags::default()))?
    } else if protocol == Protocol::Tcp as u8 {
        let header = packet.words::<5>(transport).ok()?;
        let [ports, ..] = header;
        (ports, tcp_flags(header))
    } else if protocol == Protocol::Udp as u8 || protocol == Protocol::Sctp as u8 {
        let [ports, _] = packet.words::<2>(transport).ok()?;
        (ports, TcpFlags::default())
    } else {
        return None;
    };
    let key = FlowKey::new(src, dst, BePort(ports as u16), BePort((ports >> 16) as u16), protocol);
    Some(Headers { key, transport, tcp, hop_limit, part, datagram })
}

/// Length of an ICMP header.
const ICMP_LEN: usize = 8;

/// Bytes of an ICMP error that are read: Ethernet, both network headers, and the start of the quoted transport header.
const QUOTE_LINEAR: u32 = 14 + 40 + 8 + 40 + 20;

/// The tuple of a quoted packet, of which only eight bytes behind its network header are certain.
#[inline(always)]
fn parse_quoted_ports<A: Addr>(packet: &Packet<'_>, network: &Network<A>) -> Option<FlowKey<A>> {
    Protocol::from_number(network.protocol)?;
    if network.part == Part::Later {
        return None;
    }
    let [ports, _] = packet.words::<2>(network.transport).ok()?;
    let (src_port, dst_port) = (BePort(ports as u16), BePort((ports >> 16) as u16));
    Some(FlowKey::new(network.src, network.dst, src_port, dst_port, network.protocol))
}
