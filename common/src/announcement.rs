//! What an entry node tells a backend's node with direct server return: which frontend the client sent to.

use core::mem::size_of;

use crate::addr::BePort;

/// An IPv4 option behind the 20 bytes of the plain header, the packet's only one:
///
/// | bytes | content |
/// | --- | --- |
/// | 0 | 158: copied into fragments (128), class 0, number 30, which RFC 4727 leaves to experiments |
/// | 1 | 8, the option's length |
/// | 2-3 | the frontend's port, in network byte order |
/// | 4-7 | the frontend's address, in network byte order |
///
/// Two words as they lie in memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement(pub [u32; 2]);

impl Announcement {
    /// The option's type.
    pub const KIND: u8 = 158;
    /// The option's length.
    pub const LEN: usize = 8;
    /// Type and length, the first two bytes as they lie in memory.
    const HEAD: u32 = u16::from_ne_bytes([Self::KIND, Self::LEN as u8]) as u32;

    /// The option that names the frontend `addr` and `port`.
    #[must_use]
    #[inline(always)]
    pub const fn new(addr: [u32; 1], port: BePort) -> Self {
        // On a little-endian machine the first two bytes of a word are its lower half.
        Self([Self::HEAD | (port.0 as u32) << 16, addr[0]])
    }

    /// The frontend's address and port; `None` for another option.
    #[must_use]
    #[inline(always)]
    pub const fn frontend(self) -> Option<([u32; 1], BePort)> {
        let [head, addr] = self.0;
        if head & 0xffff == Self::HEAD { Some(([addr], BePort((head >> 16) as u16))) } else { None }
    }
}

const _: () = assert!(size_of::<Announcement>() == Announcement::LEN && cfg!(target_endian = "little"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_contract() {
        let addr = [u32::from_ne_bytes([172, 20, 0, 10])];
        let option = Announcement::new(addr, BePort::new(30080));
        let bytes: [[u8; 4]; 2] = option.0.map(u32::to_ne_bytes);
        assert_eq!(bytes.concat(), [0x9e, 8, 0x75, 0x80, 172, 20, 0, 10]);
        assert_eq!(option.frontend(), Some((addr, BePort::new(30080))));
    }

    #[test]
    fn other_options_name_no_frontend() {
        for head in [[0x9e, 4, 0, 80], [0x1e, 8, 0, 80], [1, 1, 1, 1]] {
            assert_eq!(Announcement([u32::from_ne_bytes(head), 7]).frontend(), None, "{head:?}");
        }
    }
}
