//! SCTP sockets of the one-to-one style (RFC 6458, 4), which are used as those of TCP are: the standard library's types fit.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// How many associations may wait to be accepted.
const BACKLOG: i32 = 128;

/// Opens an association.
pub fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = socket(to)?;
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}

/// Takes associations at `address`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::SCTP))?;
    if address.is_ipv6() {
        // Else an association offers its host's IPv4 addresses to the peer, and no NAT translates those (RFC 9260, 5.1.2).
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
