//! Requests to rtnetlink, one at a time, and a bell that rings when links, addresses or routes change.

mod exchange;
pub mod filters;
pub mod ipsec;
pub mod ipset;
pub mod netfilter;
pub mod sock_diag;

use std::{fmt, future::poll_fn, io};

use futures::FutureExt as _;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tracing::warn;

/// A dump that the kernel marks as interrupted is inconsistent: it is asked for again this many times.
const DUMP_ATTEMPTS: u32 = 5;

/// `NLM_F_DUMP_INTR`: the tables changed while they were dumped.
const DUMP_INTERRUPTED: u16 = 0x10;

/// A socket for requests in the network namespace of the thread that opened it.
///
/// Requests block; the kernel answers them before `send` returns, so they never wait for anyone.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for everything that matches `message`.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, interrupted) = self.request(message.clone(), NLM_F_DUMP)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's tables change faster than they can be read"))
    }

    /// Has `message` carried out, with `flags` added.
    pub fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags).map(|_| ())
    }

    /// Sends one message and reads until its end; tells also whether a dump was interrupted.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for answer in split(&datagram) {
                let answer = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer) {
                    Ok(answer) => answer,
                    Err(error) => {
                        warn!(%error, "a netlink message that cannot be decoded is skipped");
                        continue;
                    }
                };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & DUMP_INTERRUPTED != 0;
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    // An acknowledgement is an error message without a code.
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_none() { Ok((answers, interrupted)) } else { Err(error.to_io()) };
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram.
fn split(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk::<4>()?) as usize;
        let message = datagram.get(..length).filter(|message| !message.is_empty())?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Rings when a link, an address or a route of the opener's network namespace changes.
///
/// What changed is not read: whoever hears the bell looks at everything again. A queue that overflows therefore loses
/// nothing.
pub struct Bell {
    socket: TokioSocket,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

impl Bell {
    /// Starts listening; needs a tokio runtime.
    pub fn hang() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        socket.socket_mut().bind(&SocketAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self { socket })
    }

    /// Waits until something has changed since the last call.
    pub async fn rung(&mut self) -> io::Result<()> {
        self.receive().await?;
        // The rest of the queue says no more than its first message did.
        while let Some(received) = self.receive().now_or_never() {
            received?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(64);
        match poll_fn(|context| self.socket.poll_recv(context, &mut buffer)).await {
            // Messages were lost, which is as good as a message: see above.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            received => received,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_split_at_the_lengths_of_its_messages_and_ends_at_a_bad_one() {
        let message = |length: u32, bytes: usize| {
            let mut message = length.to_ne_bytes().to_vec();
            message.resize(bytes, 7);
            message
        };
        let datagram = [message(6, 8), message(4, 4), message(99, 8)].concat();
        let lengths: Vec<_> = split(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [6, 4]);
        assert_eq!(split(&[0; 8]).count(), 0);
    }
}
