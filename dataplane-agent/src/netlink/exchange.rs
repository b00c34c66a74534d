//! Requests of netlink protocols that no library of ours knows, as bytes.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

use super::split;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket for requests, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: Socket,
    sequence: u32,
}

impl Exchange {
    /// Opens a socket of `protocol` (`NETLINK_*`).
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a message of type `kind` and hands the payloads that answer it to `answer`.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: i32,
        payload: &[u8],
        mut answer: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(payload);
        self.socket.send(&message, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in split(&datagram) {
                let (Some(kind), Some(sequence)) = (field::<2>(message, 4), field::<4>(message, 8)) else { continue };
                if u32::from_ne_bytes(sequence) != self.sequence {
                    continue;
                }
                match i32::from(u16::from_ne_bytes(kind)) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        // Zero acknowledges; otherwise a negative errno.
                        let code = field::<4>(message, HEADER).map_or(-libc::EIO, i32::from_ne_bytes);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => answer(message.get(HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

/// `N` bytes at `offset`.
pub(super) fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// The attributes (`struct nlattr`) of a message: type without flags, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        // The two highest bits say that it is nested, and its byte order.
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_end_at_a_bad_one() {
        let bytes = [5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4, 99, 0, 3, 0];
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &[7][..]), (2, &[1, 2, 3, 4][..])]);
    }
}
