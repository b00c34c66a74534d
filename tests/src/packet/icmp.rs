//! ICMP errors of both versions: built around a quoted packet, and taken apart.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use dataplane_common::Protocol;
use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, ip_number};

use super::{Packet, Parsed, checksum::Sum, network};

/// An ICMP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The message's type.
    pub kind: u8,
    /// The message's code.
    pub code: u8,
    /// The second word: the MTU in what says "too big", else zero.
    pub value: u32,
    /// The packet it is about, from its network header on, maybe cut short.
    pub about: Vec<u8>,
}

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens.
    PortUnreachable,
    /// Nobody speaks the protocol.
    ProtocolUnreachable,
    /// "Fragmentation needed" or "packet too big", with the next hop's MTU.
    TooBig(u16),
    /// TTL or hop limit ran out.
    TimeExceeded,
}

impl IcmpError {
    /// One of each.
    pub const ALL: [Self; 3] = [Self::PortUnreachable, Self::TooBig(1280), Self::TimeExceeded];

    /// Type, code and second word (RFC 792, RFC 1191, RFC 4443).
    const fn words(self, v4: bool) -> (u8, u8, u32) {
        match self {
            Self::PortUnreachable if v4 => (3, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::ProtocolUnreachable if v4 => (3, 2, 0),
            Self::ProtocolUnreachable => (4, 1, 6),
            Self::TooBig(mtu) if v4 => (3, 4, mtu as u32),
            Self::TooBig(mtu) => (2, 0, mtu as u32),
            Self::TimeExceeded if v4 => (11, 0, 0),
            Self::TimeExceeded => (3, 0, 0),
        }
    }
}

impl Icmp {
    /// The error that `from` sends about `frame`, quoting `quoted` bytes behind the network header, or all there are.
    pub fn about(error: IcmpError, from: IpAddr, frame: &[u8], quoted: usize) -> Result<Self> {
        let packet = frame.get(14..).context("no packet")?;
        let (src, header) = source_and_header(packet)?;
        let about = packet[..packet.len().min(header + quoted)].to_vec();
        let (kind, code, value) = error.words(from.is_ipv4());
        Ok(Self { src: from, dst: src, kind, code, value, about })
    }

    /// The frame.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.value.to_be_bytes());
        message.extend(&self.about);
        let mut sum = Sum::default();
        let number = if self.src.is_ipv4() { ip_number::ICMP } else { ip_number::IPV6_ICMP };
        if self.src.is_ipv6() {
            sum.add_ip(self.src);
            sum.add_ip(self.dst);
            sum.add(&u32::try_from(message.len())?.to_be_bytes());
            sum.add(&[0, number.0]);
        }
        sum.add(&message);
        message[2..4].copy_from_slice(&(!sum.folded()).to_be_bytes());
        let mut frame = Vec::new();
        network(self.src, self.dst, 64)?.write(&mut frame, number, &message)?;
        Ok(frame)
    }

    /// Whether it says "port unreachable".
    pub fn is_port_unreachable(&self) -> bool {
        self.says(IcmpError::PortUnreachable)
    }

    /// Whether it says of `protocol`, as its senders understand it, that nobody listens.
    pub fn refuses(&self, protocol: Protocol) -> bool {
        self.says(if protocol == Protocol::Sctp { IcmpError::ProtocolUnreachable } else { IcmpError::PortUnreachable })
    }

    /// Whether it says `error`, its MTU included.
    pub fn says(&self, error: IcmpError) -> bool {
        (self.kind, self.code, self.value) == error.words(self.src.is_ipv4())
    }

    /// The quoted packet, when it is whole, with every checksum checked.
    pub fn quoted(&self) -> Result<Packet> {
        Parsed::from_frame(&framed(&self.about))?.transport()
    }

    pub(super) fn from_v4(src: IpAddr, dst: IpAddr, icmp: &Icmpv4Slice<'_>) -> Self {
        Self::from_parts(src, dst, (icmp.type_u8(), icmp.code_u8()), icmp.slice())
    }

    pub(super) fn from_v6(src: IpAddr, dst: IpAddr, icmp: &Icmpv6Slice<'_>) -> Self {
        Self::from_parts(src, dst, (icmp.type_u8(), icmp.code_u8()), icmp.slice())
    }

    fn from_parts(src: IpAddr, dst: IpAddr, (kind, code): (u8, u8), message: &[u8]) -> Self {
        let value = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        Self { src, dst, kind, code, value, about: message[8..].to_vec() }
    }

    /// Checks what a quoted IPv4 header has of its own: its checksum.
    pub(super) fn check_quoted_header(&self) -> Result<()> {
        // Errors only: what others carry is their business.
        if self.src.is_ipv4() && matches!(self.kind, 3 | 11 | 12) {
            let header = Ipv4HeaderSlice::from_slice(&self.about).context("the quoted header")?;
            let (found, right) = (header.header_checksum(), header.to_header().calc_header_checksum());
            ensure!(found == right, "quoted IPv4 header checksum {found:#06x}, right is {right:#06x}");
        }
        Ok(())
    }
}

/// The packet in an Ethernet frame.
fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|byte| byte >> 4 == 4) { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[0; 12][..], &ethertype, packet].concat()
}

/// Who sent a packet, and the length of its network header.
fn source_and_header(packet: &[u8]) -> Result<(IpAddr, usize)> {
    if packet.first().context("no packet")? >> 4 == 4 {
        let header = Ipv4HeaderSlice::from_slice(packet)?;
        return Ok((header.source_addr().into(), header.slice().len()));
    }
    let header = etherparse::Ipv6HeaderSlice::from_slice(packet)?;
    Ok((header.source_addr().into(), header.slice().len()))
}
