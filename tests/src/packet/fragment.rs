//! Fragments of frames: cutting into and putting together again.

use anyhow::{Context, Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, ip_number};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Cuts a frame's IP payload into fragments of `size` bytes each, which are of the datagram `id`.
pub fn cut(frame: &[u8], id: u16, size: usize) -> Result<Vec<Vec<u8>>> {
    ensure!(size.is_multiple_of(8) && size > 0, "{size} is no size of a fragment");
    let (ethernet, packet) = frame.split_at(ETHERNET);
    if packet[0] >> 4 == 4 {
        let (header, payload) = Ipv4Header::from_slice(packet)?;
        return parts(payload, size).map(|part| part.into_v4(ethernet, &header, id)).collect();
    }
    let (header, payload) = Ipv6Header::from_slice(packet)?;
    parts(payload, size).map(|part| part.into_v6(ethernet, &header, id)).collect()
}

/// The same packet, which may be cut on its way or must not be; an IPv6 one stays as it is, as no router cuts those.
pub fn allow(frame: &[u8], may_be_cut: bool) -> Result<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    if packet[0] >> 4 != 4 {
        return Ok(frame.to_vec());
    }
    let (mut header, payload) = Ipv4Header::from_slice(packet)?;
    header.dont_fragment = !may_be_cut;
    Header::V4(header).frame(ethernet, payload)
}

/// Puts the fragments of one datagram together; the checksums of IPv4 headers are checked.
pub fn join(frames: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut pieces = frames.iter().map(|frame| Piece::of(frame)).collect::<Result<Vec<_>>>()?;
    pieces.sort_by_key(|piece| piece.at);
    let mut payload = Vec::new();
    for piece in &pieces {
        ensure!(piece.at == payload.len(), "byte {} is followed by byte {}", payload.len(), piece.at);
        ensure!(piece.header == pieces[0].header, "fragments of different datagrams");
        payload.extend(&piece.payload);
    }
    let more: Vec<bool> = pieces.iter().map(|piece| piece.more).collect();
    ensure!(more.iter().rposition(|more| *more) == more.len().checked_sub(2), "which is the last fragment? {more:?}");
    let ethernet = &frames.first().context("no fragments")?[..ETHERNET];
    pieces.swap_remove(0).header.frame(ethernet, &payload)
}

/// A part of a payload.
struct Part<'a> {
    at: usize,
    payload: &'a [u8],
    more: bool,
}

fn parts(payload: &[u8], size: usize) -> impl Iterator<Item = Part<'_>> {
    let part = move |(index, part)| Part { at: index * size, payload: part, more: (index + 1) * size < payload.len() };
    payload.chunks(size).enumerate().map(part)
}

impl Part<'_> {
    fn into_v4(self, ethernet: &[u8], whole: &Ipv4Header, id: u16) -> Result<Vec<u8>> {
        let mut header = whole.clone();
        header.identification = id;
        header.dont_fragment = false;
        header.more_fragments = self.more;
        header.fragment_offset = IpFragOffset::try_new(u16::try_from(self.at / 8)?)?;
        Header::V4(header).frame(ethernet, self.payload)
    }

    fn into_v6(self, ethernet: &[u8], whole: &Ipv6Header, id: u16) -> Result<Vec<u8>> {
        // RFC 8200, 4.5: next header, reserved, offset and "more", identification. By hand: etherparse 0.19 writes "more" as
        // the wrong bit.
        let mut fragment = vec![whole.next_header.0, 0];
        fragment.extend((u16::try_from(self.at)? | u16::from(self.more)).to_be_bytes());
        fragment.extend((u32::from(id) << 16 | 0xf00d).to_be_bytes());
        let header = Ipv6Header { next_header: ip_number::IPV6_FRAG, ..whole.clone() };
        Header::V6(header).frame(ethernet, &[&fragment, self.payload].concat())
    }
}

/// What the fragments of a datagram have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Header {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

impl Header {
    fn frame(self, ethernet: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
        let header = match self {
            Self::V4(mut header) => {
                header.set_payload_len(payload.len())?;
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            Self::V6(mut header) => {
                header.payload_length = u16::try_from(payload.len())?;
                header.to_bytes().to_vec()
            }
        };
        Ok([ethernet, &header, payload].concat())
    }
}

/// A fragment that has been taken apart.
struct Piece {
    at: usize,
    more: bool,
    payload: Vec<u8>,
    header: Header,
}

impl Piece {
    fn of(frame: &[u8]) -> Result<Self> {
        let packet = &frame[ETHERNET..];
        if packet[0] >> 4 == 4 {
            let (mut header, payload) = Ipv4Header::from_slice(packet)?;
            let (found, right) = (header.header_checksum, header.calc_header_checksum());
            ensure!(found == right, "IPv4 header checksum {found:#06x}, right is {right:#06x}");
            let (at, more) = (usize::from(header.fragment_offset.value()) * 8, header.more_fragments);
            header.more_fragments = false;
            header.fragment_offset = IpFragOffset::ZERO;
            (header.total_len, header.header_checksum) = (0, 0);
            return Ok(Self { at, more, payload: payload.to_vec(), header: Header::V4(header) });
        }
        let (mut header, payload) = Ipv6Header::from_slice(packet)?;
        ensure!(header.next_header == ip_number::IPV6_FRAG, "no fragment header");
        let (fragment, payload) = payload.split_at_checked(8).context("a fragment header has eight bytes")?;
        header.next_header = IpNumber(fragment[0]);
        header.payload_length = 0;
        let offset = u16::from_be_bytes([fragment[2], fragment[3]]);
        let (at, more) = (usize::from(offset & 0xfff8), offset & 1 != 0);
        Ok(Self { at, more, payload: payload.to_vec(), header: Header::V6(header) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, Parsed};

    #[test]
    fn what_is_cut_is_put_together_again() -> Result<()> {
        for (src, dst) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let packet = Packet::udp(src.parse()?, dst.parse()?).with_payload(&[0x5a; 4001]);
            let mut fragments = cut(&packet.frame()?, 7, 1440)?;
            assert_eq!(fragments.len(), 3);
            fragments.reverse();
            assert_eq!(Parsed::from_frame(&join(&fragments)?)?.transport()?, packet);
            assert!(join(&fragments[..2]).is_err(), "the first one is missing");
        }
        Ok(())
    }
}
