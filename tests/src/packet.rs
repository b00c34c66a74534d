//! Packets as values: built with right checksums, taken apart with every checksum checked again.

mod checksum;
pub mod fragment;
mod icmp;
pub mod options;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::{Protocol, TcpFlags};
use etherparse::{
    IpHeaders, IpNumber, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader, TransportSlice, ip_number,
};

pub use self::icmp::{Icmp, IcmpError};

/// Source and destination MAC addresses of everything built here.
pub const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

/// A TCP segment, UDP datagram or SCTP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// TCP's flags; empty for others.
    pub flags: TcpFlags,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// What it carries: data, or SCTP's chunks.
    pub payload: Vec<u8>,
}

/// The verification tag of every SCTP packet built here.
const SCTP_TAG: [u8; 4] = [0xd1, 0xce, 0xca, 0x7e];

/// What a frame turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// TCP, UDP or SCTP.
    Transport(Packet),
    /// An ICMP message of either version.
    Icmp(Icmp),
}

impl Packet {
    /// A TCP segment with `flags`.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: TcpFlags) -> Self {
        Self { protocol: Protocol::Tcp, src, dst, flags, hop_limit: 64, payload: Vec::new() }
    }

    /// A UDP datagram.
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self { protocol: Protocol::Udp, src, dst, flags: TcpFlags(0), hop_limit: 64, payload: b"question".to_vec() }
    }

    /// An SCTP packet with a COOKIE ACK chunk, the shortest there is (RFC 9260, 3.3.12).
    pub fn sctp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self { protocol: Protocol::Sctp, payload: vec![11, 0, 0, 4], ..Self::udp(src, dst) }
    }

    /// A first packet of `protocol`: a SYN, a datagram, or an INIT chunk (RFC 9260, 3.3.2).
    pub fn first(protocol: Protocol, src: SocketAddr, dst: SocketAddr) -> Self {
        match protocol {
            Protocol::Tcp => Self::tcp(src, dst, TcpFlags::SYN),
            Protocol::Udp => Self::udp(src, dst),
            Protocol::Sctp => {
                let init = [[1, 0, 0, 20], [0xca, 0xfe, 0, 1], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]];
                Self::sctp(src, dst).with_payload(init.as_flattened())
            }
        }
    }

    /// What the receiver answers: SYN and ACK, or a datagram.
    pub fn answer(&self) -> Self {
        let flags = match self.protocol {
            Protocol::Tcp if self.flags.opens() => TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0),
            Protocol::Tcp => TcpFlags::ACK,
            _ => TcpFlags(0),
        };
        Self { src: self.dst, dst: self.src, flags, hop_limit: 64, ..self.clone() }
    }

    /// The same with other flags.
    pub fn with_flags(self, flags: TcpFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with `payload`.
    pub fn with_payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// The frame.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let net = network(self.src.ip(), self.dst.ip(), self.hop_limit)?;
        let mut frame = Vec::new();
        match self.protocol {
            Protocol::Tcp => {
                let mut header = TcpHeader::new(self.src.port(), self.dst.port(), 1000, 65_000);
                header.syn = self.flags.0 & TcpFlags::SYN.0 != 0;
                header.ack = self.flags.0 & TcpFlags::ACK.0 != 0;
                header.fin = self.flags.0 & TcpFlags::FIN.0 != 0;
                header.rst = self.flags.0 & TcpFlags::RST.0 != 0;
                net.tcp_header(header).write(&mut frame, &self.payload)?;
            }
            Protocol::Udp => net.udp(self.src.port(), self.dst.port()).write(&mut frame, &self.payload)?,
            Protocol::Sctp => {
                let mut segment = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
                segment.extend(SCTP_TAG);
                segment.extend([0; 4]);
                segment.extend(&self.payload);
                let check = checksum::crc32c(&segment);
                segment[8..12].copy_from_slice(&check.to_le_bytes());
                net.write(&mut frame, ip_number::SCTP, &segment)?;
            }
        }
        Ok(frame)
    }
}

impl Parsed {
    /// Takes a frame apart. Every checksum is computed anew; a wrong one is an error.
    pub fn from_frame(frame: &[u8]) -> Result<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).context("not a packet")?;
        let (src, dst, hop_limit): (IpAddr, IpAddr, u8) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                let (found, right) = (header.header_checksum(), header.to_header().calc_header_checksum());
                ensure!(found == right, "IPv4 header checksum {found:#06x}, right is {right:#06x}");
                (header.source_addr().into(), header.destination_addr().into(), header.ttl())
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
            }
            other => bail!("no IP header: {other:?}"),
        };
        let (number, segment) = ip_payload(&sliced)?;
        checksum::check_transport(number, src, dst, segment)?;
        let transport = |protocol, ports: (u16, u16), flags, payload: &[u8]| {
            let (src, dst) = ((src, ports.0).into(), (dst, ports.1).into());
            Self::Transport(Packet { protocol, src, dst, flags, hop_limit, payload: payload.to_vec() })
        };
        Ok(match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                let ports = (tcp.source_port(), tcp.destination_port());
                transport(Protocol::Tcp, ports, TcpFlags(segment[13]), tcp.payload())
            }
            Some(TransportSlice::Udp(udp)) => {
                transport(Protocol::Udp, (udp.source_port(), udp.destination_port()), TcpFlags(0), udp.payload())
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                let icmp = Icmp::from_v4(src, dst, icmp);
                icmp.check_quoted_header()?;
                Self::Icmp(icmp)
            }
            Some(TransportSlice::Icmpv6(icmp)) => Self::Icmp(Icmp::from_v6(src, dst, icmp)),
            None if number == ip_number::SCTP && segment.len() >= 12 => {
                let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
                transport(Protocol::Sctp, (port(0), port(2)), TcpFlags(0), &segment[12..])
            }
            None => bail!("no transport header"),
        })
    }

    /// The packet of a transport protocol.
    pub fn transport(self) -> Result<Packet> {
        match self {
            Self::Transport(packet) => Ok(packet),
            Self::Icmp(icmp) => bail!("ICMP {icmp:?} where TCP, UDP or SCTP was expected"),
        }
    }
}

/// The headers below the transport header.
fn network(src: IpAddr, dst: IpAddr, hop_limit: u8) -> Result<PacketBuilderStep<IpHeaders>> {
    let link = PacketBuilder::ethernet2(MACS.0, MACS.1);
    Ok(match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), hop_limit),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), hop_limit),
        (src, dst) => bail!("{src} and {dst} are of different families"),
    })
}

fn ip_payload<'a>(sliced: &'a SlicedPacket<'_>) -> Result<(IpNumber, &'a [u8])> {
    let payload = sliced.net.as_ref().and_then(NetSlice::ip_payload_ref).context("no IP payload")?;
    ensure!(!payload.fragmented, "a fragment");
    Ok((payload.ip_number, payload.payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(&str, &str); 2] = [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")];

    #[test]
    fn what_is_built_is_parsed_back() {
        for (src, dst) in PAIRS {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let packet = Packet::first(protocol, src.parse().unwrap(), dst.parse().unwrap()).with_payload(b"odd");
                let parsed = Parsed::from_frame(&packet.frame().unwrap()).unwrap();
                assert_eq!(parsed, Parsed::Transport(packet));
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        for (src, dst) in PAIRS {
            let frame = Packet::udp(src.parse().unwrap(), dst.parse().unwrap()).frame().unwrap();
            // The addresses, the ports and the payload; MAC addresses are under no checksum.
            for index in [29, frame.len() - 16, frame.len() - 1] {
                let mut changed = frame.clone();
                changed[index] ^= 0x55;
                assert!(Parsed::from_frame(&changed).is_err(), "{src} byte {index}");
            }
        }
    }

    #[test]
    fn an_answer_goes_back() {
        let packet = Packet::tcp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), TcpFlags::SYN);
        let answer = packet.answer();
        assert_eq!((answer.src, answer.dst), (packet.dst, packet.src));
        assert_eq!(answer.flags, TcpFlags(0x12));
    }
}
