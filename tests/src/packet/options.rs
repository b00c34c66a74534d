//! More between the network header and the transport header: IPv4 options and IPv6 extension headers.

use anyhow::{Context, Result, ensure};
use etherparse::{Ipv4Header, Ipv6Header, ip_number};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// The frame with `units` times four bytes of IPv4 options, or as many times eight bytes of IPv6 destination options. All of
/// them are padding.
pub fn with_options(frame: &[u8], units: u8) -> Result<Vec<u8>> {
    ensure!(units > 0, "nothing to insert");
    let (ethernet, packet) = frame.split_at(ETHERNET);
    if packet[0] >> 4 == 4 {
        let (mut header, payload) = Ipv4Header::from_slice(packet)?;
        // No operation (RFC 791).
        header.options = vec![1; usize::from(units) * 4].as_slice().try_into()?;
        header.set_payload_len(payload.len())?;
        header.header_checksum = header.calc_header_checksum();
        return Ok([ethernet, &header.to_bytes(), payload].concat());
    }
    with_extension(frame, ip_number::IPV6_DEST_OPTIONS.0, units)
}

/// The IPv4 frame with `options` in place of those that it has.
pub fn with_ipv4_options(frame: &[u8], options: &[u8]) -> Result<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let (mut header, payload) = Ipv4Header::from_slice(packet)?;
    header.options = options.try_into()?;
    header.set_payload_len(payload.len())?;
    header.header_checksum = header.calc_header_checksum();
    Ok([ethernet, &header.to_bytes(), payload].concat())
}

/// The options of an IPv4 frame.
pub fn ipv4_options(frame: &[u8]) -> Result<Vec<u8>> {
    let (header, _) = Ipv4Header::from_slice(frame.get(ETHERNET..).context("no packet")?)?;
    Ok(header.options.to_vec())
}

/// The frame with one more IPv6 extension header of type `kind` and `units` times eight bytes, right behind the network
/// header, filled with one padding option.
pub fn with_extension(frame: &[u8], kind: u8, units: u8) -> Result<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let (mut header, payload) = Ipv6Header::from_slice(packet)?;
    let len = usize::from(units) * 8;
    let rest = len.checked_sub(4).context("an extension header has eight bytes")?;
    // PadN (RFC 8200, 4.2); for a routing header the same bytes say type 1 without segments left.
    let mut extension = vec![header.next_header.0, units - 1, 1, u8::try_from(rest)?];
    extension.resize(len, 0);
    header.next_header = etherparse::IpNumber(kind);
    header.payload_length = u16::try_from(payload.len() + len)?;
    Ok([ethernet, &header.to_bytes(), &extension, payload].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, Parsed};

    #[test]
    fn options_change_nothing_else() -> Result<()> {
        for (src, dst) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let packet = Packet::udp(src.parse()?, dst.parse()?);
            for units in [1, 2, 10] {
                let frame = with_options(&packet.frame()?, units)?;
                assert!(frame.len() > packet.frame()?.len());
                assert_eq!(Parsed::from_frame(&frame)?.transport()?, packet);
            }
        }
        Ok(())
    }
}
