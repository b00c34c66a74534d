//! Addresses, ports and the two address families, with byte order as part of the type.

use core::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::pod;

/// An IP address as 32-bit words in network byte order: one word for IPv4, four for IPv6.
///
/// Words keep map keys four-byte aligned and let one checksum helper serve both families.
pub trait Addr: Copy + Eq + Debug + 'static {
    /// The unspecified address, all bits zero.
    const ZERO: Self;
    /// Size in bytes.
    const SIZE: usize;

    /// The address of this family in `ip`; `None` when `ip` is of the other family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    /// The same address as the standard library has it.
    fn to_ip(self) -> IpAddr;
    /// The words, in network byte order.
    fn words(&self) -> &[u32];
    /// A copy that is made word by word.
    ///
    /// For programs, where the compiler cannot tell that both places are apart: it would call `memmove`, which is a loop over
    /// bytes there.
    #[must_use]
    fn by_words(&self) -> Self;
}

impl Addr for [u32; 1] {
    const ZERO: Self = [0];
    const SIZE: usize = 4;

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some([u32::from_ne_bytes(ip.octets())]),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self[0].to_ne_bytes()))
    }

    fn words(&self) -> &[u32] {
        self
    }

    #[inline(always)]
    fn by_words(&self) -> Self {
        *self
    }
}

impl Addr for [u32; 4] {
    const ZERO: Self = [0; 4];
    const SIZE: usize = 16;

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
                    *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
                Some(words)
            }
        }
    }

    fn to_ip(self) -> IpAddr {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(self) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets))
    }

    fn words(&self) -> &[u32] {
        self
    }

    #[inline(always)]
    fn by_words(&self) -> Self {
        let [a, b, c, d] = *self;
        [a, b, c, d]
    }
}

/// An address family: fixes the layout of every map that holds addresses.
pub trait Family: Copy + 'static {
    /// The family's address.
    type Addr: Addr;
    /// The suffix of the family's map names.
    const SUFFIX: &'static str;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = [u32; 1];
    const SUFFIX: &'static str = "4";
}

impl Family for V6 {
    type Addr = [u32; 4];
    const SUFFIX: &'static str = "6";
}

/// A transport port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BePort(pub u16);

pod!(BePort);

impl BePort {
    /// The port `port`, given in host order.
    #[must_use]
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The port in host order.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl Ord for BePort {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl PartialOrd for BePort {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_the_octets_in_network_order() {
        let v4: [u32; 1] = Addr::from_ip("10.1.2.3".parse().unwrap()).unwrap();
        assert_eq!(v4[0].to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(v4.to_ip().to_string(), "10.1.2.3");
        let v6: [u32; 4] = Addr::from_ip("fd00::1:2".parse().unwrap()).unwrap();
        assert_eq!(v6[0].to_ne_bytes(), [0xfd, 0, 0, 0]);
        assert_eq!(v6[3].to_ne_bytes(), [0, 1, 0, 2]);
        assert_eq!(v6.to_ip().to_string(), "fd00::1:2");
        assert_eq!(<[u32; 1] as Addr>::from_ip("::1".parse().unwrap()), None);
    }

    #[test]
    fn ports_are_stored_big_endian() {
        assert_eq!(BePort::new(80).0.to_ne_bytes(), [0, 80]);
        assert_eq!(BePort::new(30080).get(), 30080);
    }
}
