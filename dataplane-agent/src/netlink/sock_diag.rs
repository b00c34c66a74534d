//! Sockets of a network namespace: their cookies, the connected UDP ones, and destroying one.
//!
//! Two fixed structures of `linux/inet_diag.h` are all it takes; they are written and read byte by byte.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::exchange::{Exchange, field};

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
/// Every state but TIME_WAIT, LISTEN and NEW_SYN_RECV, which no process has asked for by `connect(2)` or has left behind.
const IN_USE: u32 = !(1 << 6 | 1 << 10 | 1 << 12);

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
    exchange: Exchange,
}

impl SockDiag {
    /// Opens a socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { exchange: Exchange::open(NETLINK_SOCK_DIAG)? })
    }

    /// Every connected UDP socket of the families IPv4 and IPv6; IPv6 sockets may have an IPv4 peer.
    pub fn connected_udp(&mut self) -> io::Result<Vec<UdpSocket>> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = family as u8;
            let about = (libc::IPPROTO_UDP, ESTABLISHED);
            self.request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, about, &[0; SOCKET_ID], |answer| {
                sockets.extend(parse(answer))
            })?;
        }
        Ok(sockets)
    }

    /// The cookies of all TCP and UDP sockets that are bound to a port or connected, and do not listen.
    pub fn cookies(&mut self) -> io::Result<HashSet<u64>> {
        let mut cookies = HashSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                let about = (protocol, IN_USE);
                self.request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family as u8, about, &[0; SOCKET_ID], |answer| {
                    cookies.extend(field::<SOCKET_ID>(answer, ANSWER_ID).as_ref().and_then(cookie));
                })?;
            }
        }
        Ok(cookies)
    }

    /// Destroys a socket: its owner's next operation fails, and it is no longer connected.
    ///
    /// `ENOENT` means that it is gone already, `EOPNOTSUPP` that the kernel was built without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let about = (libc::IPPROTO_UDP, ESTABLISHED);
        self.request(SOCK_DESTROY, libc::NLM_F_ACK, socket.family, about, &socket.id, |_| {})
    }

    /// Asks about sockets of a protocol in certain states.
    fn request(
        &mut self,
        kind: u16,
        flags: i32,
        family: u8,
        (protocol, states): (i32, u32),
        id: &[u8; SOCKET_ID],
        answer: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut payload = Vec::with_capacity(REQUEST_ID + SOCKET_ID);
        payload.extend([family, protocol as u8, 0, 0]);
        payload.extend(states.to_ne_bytes());
        payload.extend(id);
        self.exchange.request(kind, flags, &payload, answer)
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
    Some(UdpSocket { peer: SocketAddr::new(addr, port), cookie: cookie(&id)?, family, id })
}

/// The cookie in a `struct inet_diag_sockid`: two words, the low one first.
fn cookie(id: &[u8; SOCKET_ID]) -> Option<u64> {
    let (low, high) = (u32::from_ne_bytes(field(id, 40)?), u32::from_ne_bytes(field(id, 44)?));
    Some(u64::from(high) << 32 | u64::from(low))
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
