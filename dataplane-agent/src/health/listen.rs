//! Listening sockets as Go makes them: an unspecified address takes both IP families.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait for the server.
const BACKLOG: u32 = 128;

/// Listens on `address`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match bind(both) {
            // A node may do without IPv6.
            Err(error) if address.is_ipv4() && error.kind() != io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind(address)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Otherwise connections in TIME_WAIT keep a restarted agent from its port.
    socket.set_reuseaddr(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &!ip.is_unspecified())?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
