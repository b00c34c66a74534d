//! Answers in the name of a destination: TCP RST and ICMP errors, made out of the packet they answer.

use dataplane_common::{Protocol, TcpFlags};

use crate::{
    checksum,
    family::{Datapath, Headers, IcmpError},
    nat::checksum_offset,
    packet::{Frame as _, Packet},
    verdict::Step,
};

/// Refuses a packet as a host without a listener does: RST for TCP (RFC 9293, 3.10.7.1), port unreachable for UDP and where more than the
/// plain header is in front of it. SCTP hears of a protocol that is not there, which ends an association (RFC 9260, 10); about a port it
/// would go on asking for minutes (`sctp_v4_err`).
///
/// Afterwards the packet is the answer, up to its link-layer addresses. False when it must not or cannot be answered.
#[inline(always)]
pub fn refuse<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>) -> Step<bool> {
    // A RST is never answered.
    if headers.tcp.0 & TcpFlags::RST.0 != 0 {
        return Ok(false);
    }
    let protocol = headers.key.protocol;
    let is_plain = F::lends_header(headers);
    if protocol == Protocol::Tcp as u8 && is_plain {
        reset::<F>(packet, headers)?;
        return Ok(true);
    }
    let is_sctp = protocol == Protocol::Sctp as u8;
    if is_sctp && packet.words::<{ SCTP_LEN / 4 }>(headers.transport).is_err() {
        // Nothing that begins an association is so short.
        return Ok(false);
    }
    let error = if is_sctp && is_plain { IcmpError::ProtocolUnreachable } else { IcmpError::PortUnreachable };
    complain::<F>(packet, headers, error)
}

/// Turns the packet into an ICMP error about itself, up to its link-layer addresses. False when that must not or cannot be sent.
#[inline(always)]
pub fn complain<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, error: IcmpError) -> Step<bool> {
    if !F::is_answerable(headers) {
        return Ok(false);
    }
    icmp_error::<F>(packet, headers, error)?;
    Ok(true)
}

#[inline(always)]
fn reset<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>) -> Step<()> {
    let [_, sequence, acknowledged, offset_and_flags, _] = packet.words::<5>(headers.transport)?;
    let partial = packet.probe_partial_checksum(headers.transport + checksum_offset(headers.key.protocol))?;
    let header_len = (u32::from_be(offset_and_flags) >> 28) * 4;
    let payload = F::transport_len(packet, headers)?.wrapping_sub(header_len);
    packet.resize(headers.transport + TCP_LEN)?;
    F::write_answer_header(packet, headers, TCP_LEN)?;

    let flags = headers.tcp.0;
    let (sequence, acknowledged, answer) = if flags & TcpFlags::ACK.0 != 0 {
        (acknowledged, 0, TcpFlags::RST.0)
    } else {
        let counted = u32::from(flags & TcpFlags::SYN.0 != 0) + u32::from(flags & TcpFlags::FIN.0 != 0);
        let next = u32::from_be(sequence).wrapping_add(payload).wrapping_add(counted);
        (0, next.to_be(), TcpFlags::RST.0 | TcpFlags::ACK.0)
    };
    let ports = u32::from(headers.key.dst_port.0) | u32::from(headers.key.src_port.0) << 16;
    let offset_and_flags = (5 << 28 | u32::from(answer) << 16).to_be();
    let mut header = [ports, sequence, acknowledged, offset_and_flags, 0];
    let pseudo = checksum::sum(&headers.key.src)
        + checksum::sum(&headers.key.dst)
        + u64::from(u32::from(headers.key.protocol).to_be())
        + u64::from((TCP_LEN as u32).to_be());
    // A device that completes the checksum wants the pseudo header's sum in the field, everyone else the checksum.
    let check = if partial {
        !checksum::complement(pseudo)
    } else {
        checksum::complement(pseudo + checksum::sum_words(&header))
    };
    header[4] = u32::from(check);
    packet.set_words(headers.transport, header)
}

/// Turns the packet into an ICMP error about itself, quoting it up to the start of its transport header.
#[inline(always)]
fn icmp_error<F: Datapath>(packet: &mut Packet<'_>, headers: &Headers<F::Addr>, error: IcmpError) -> Step<()> {
    let protocol = headers.key.protocol;
    let end = headers.transport + quoted(protocol);
    let sum = if protocol == Protocol::Sctp as u8 {
        // The kernel does not cut into a checksum that the device completes, so SCTP's header is quoted whole.
        packet.resize(end)?;
        let sum = checksum::sum_words(&packet.words::<{ SCTP_LEN / 4 }>(headers.transport)?);
        sum + F::extensions_sum(packet, headers, sum)?
    } else {
        let check = headers.transport + checksum_offset(protocol);
        let original = packet.half(check)?;
        let partial = packet.probe_partial_checksum(check)?;
        *packet.at_mut::<[u8; 2]>(check)? = original.to_ne_bytes();
        // For the same reason TCP's is.
        packet.resize(end)?;
        let sum = if protocol == Protocol::Tcp as u8 {
            checksum::sum_words(&packet.words::<5>(headers.transport)?)
        } else {
            checksum::sum_words(&packet.words::<2>(headers.transport)?)
        };
        // Where a device completes the checksum, it makes the quoted part and its pseudo header sum to zero; the field holds the
        // pseudo header's sum.
        let completed = if partial { u64::from(!original) } else { sum };
        completed + F::extensions_sum(packet, headers, sum)?
    };
    packet.insert_after_ethernet(F::ICMP_ERROR_LEN)?;
    F::write_icmp_error(packet, headers, error, quoted(protocol), sum)
}

/// Bytes of the transport header that an ICMP error quotes.
#[inline(always)]
const fn quoted(protocol: u8) -> usize {
    if protocol == Protocol::Tcp as u8 {
        TCP_LEN
    } else if protocol == Protocol::Sctp as u8 {
        SCTP_LEN
    } else {
        UDP_LEN
    }
}

const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// The common header and what a first chunk says of itself: by the tag in there the sender knows its association (RFC 9260, 10).
const SCTP_LEN: usize = 20;
