//! Sockets of a network namespace: listing the connected UDP ones, and destroying one.
//!
//! Two fixed structures of `linux/inet_diag.h` are all it takes; they are written and read byte by byte.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::split;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// Where `struct inet_diag_req_v2` has its socket id, after family, protocol, extensions, padding and states.
const REQUEST_ID: usize = 8;
/// Where `struct inet_diag_msg` has its socket id, after family, state, timer and retransmits.
const ANSWER_ID: usize = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// A connected UDP socket is in the state that TCP calls established.
const ESTABLISHED: u32 = 1 << 1;

/// A connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// The other end.
    pub peer: SocketAddr,
    /// The socket's cookie.
    pub cookie: u64,
    family: u8,
    /// The kernel's own bytes: addresses, ports, interface, cookie.
    id: [u8; SOCKET_ID],
}

/// A socket for requests about sockets, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
}

impl SockDiag {
    /// Opens a socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Every connected UDP socket of the families IPv4 and IPv6; IPv6 sockets may have an IPv4 peer.
    pub fn connected_udp(&mut self) -> io::Result<Vec<UdpSocket>> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = family as u8;
            let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
            self.request(SOCK_DIAG_BY_FAMILY, flags, family, &[0; SOCKET_ID], |answer| sockets.extend(parse(answer)))?;
        }
        Ok(sockets)
    }

    /// Destroys a socket: its owner's next operation fails, and it is no longer connected.
    ///
    /// `ENOENT` means that it is gone already, `EOPNOTSUPP` that the kernel was built without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        self.request(SOCK_DESTROY, flags, socket.family, &socket.id, |_| {})
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        id: &[u8; SOCKET_ID],
        mut answer: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + REQUEST_ID + SOCKET_ID;
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
        message.extend(ESTABLISHED.to_ne_bytes());
        message.extend(id);
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

/// Reads a `struct inet_diag_msg`.
fn parse(answer: &[u8]) -> Option<UdpSocket> {
    let family = *answer.first()?;
    let id = field::<SOCKET_ID>(answer, ANSWER_ID)?;
    // Source port, destination port, source address, destination address, interface, cookie.
    let port = u16::from_be_bytes(field(&id, 2)?);
    let addr = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(field::<4>(&id, 20)?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(field::<16>(&id, 20)?)).to_canonical(),
        _ => return None,
    };
    // Two words, the low one first.
    let (low, high) = (u32::from_ne_bytes(field(&id, 40)?), u32::from_ne_bytes(field(&id, 44)?));
    let cookie = u64::from(high) << 32 | u64::from(low);
    Some(UdpSocket { peer: SocketAddr::new(addr, port), cookie, family, id })
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Sender;

    use super::*;

    #[test]
    fn connected_sockets_are_found_with_their_peers_and_others_are_not() {
        let server = Sender::bind("127.0.0.1:0").unwrap();
        let client = Sender::bind("127.0.0.1:0").unwrap();
        let peer = server.local_addr().unwrap();
        let found =
            || SockDiag::open().unwrap().connected_udp().unwrap().into_iter().filter(|s| s.peer == peer).count();
        assert_eq!(found(), 0);
        client.connect(peer).unwrap();
        assert_eq!(found(), 1);
        // An IPv6 socket with an IPv4 peer.
        let mapped = Sender::bind("[::]:0").unwrap();
        mapped.connect(("::ffff:127.0.0.1", peer.port())).unwrap();
        assert_eq!(found(), 2);
    }
}
