//! Checksums of packets, computed from scratch.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use etherparse::{IpNumber, ip_number};

/// Sums pseudo header and segment (RFC 1071): a right packet sums up to all ones.
pub(super) fn check_transport(number: IpNumber, src: IpAddr, dst: IpAddr, segment: &[u8]) -> Result<()> {
    if number == ip_number::SCTP {
        return check_sctp(segment);
    }
    let mut sum = Sum::default();
    // ICMP for IPv4 is the only one without a pseudo header.
    if number != ip_number::ICMP {
        sum.add_ip(src);
        sum.add_ip(dst);
        sum.add(&u32::try_from(segment.len())?.to_be_bytes());
        sum.add(&[0, number.0]);
    }
    if number == ip_number::UDP && src.is_ipv4() && segment.get(6..8) == Some(&[0, 0]) {
        // RFC 768: all zeroes means that the sender computed none.
        return Ok(());
    }
    sum.add(segment);
    ensure!(sum.folded() == 0xffff, "wrong transport checksum: protocol {}, {src} -> {dst}", number.0);
    Ok(())
}

fn check_sctp(segment: &[u8]) -> Result<()> {
    ensure!(segment.len() >= 12, "an SCTP header has 12 bytes, not {}", segment.len());
    let mut zeroed = segment.to_vec();
    zeroed[8..12].fill(0);
    ensure!(segment[8..12] == crc32c(&zeroed).to_le_bytes(), "wrong SCTP checksum");
    Ok(())
}

/// CRC32c (RFC 9260, appendix A), bit by bit.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ REFLECTED_POLYNOMIAL };
        }
    }
    !crc
}

/// A sum with end-around carry.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(2) {
            self.0 += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
        }
    }

    pub(super) fn add_ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.add(&ip.octets()),
            IpAddr::V6(ip) => self.add(&ip.octets()),
        }
    }

    pub(super) fn folded(mut self) -> u16 {
        while self.0 > 0xffff {
            self.0 = (self.0 & 0xffff) + (self.0 >> 16);
        }
        self.0 as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32c_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
