//! Servers that say who they are and whom they see, and echo everything else.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use super::{
    client::HELLO,
    protocol::{Greeting, Transport},
    sctp,
};

/// Listens on `address` and serves on threads of its own, for as long as the process lives.
pub fn serve(name: String, transport: Transport, address: SocketAddr) -> io::Result<()> {
    if transport.is_connection() {
        let is_tcp = transport == Transport::Tcp;
        let listener = if is_tcp { TcpListener::bind(address)? } else { sctp::listen(address)? };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                // A client that goes away ends its thread, and that is all there is to say about it.
                thread::spawn(move || serve_stream(&name, stream, is_tcp).ok());
            }
        });
    } else {
        let socket = UdpSocket::bind(address)?;
        thread::spawn(move || {
            loop {
                // The ICMP error about an earlier answer comes as an error of a later call.
                serve_datagram(&name, &socket).ok();
            }
        });
    }
    Ok(())
}

fn serve_stream(name: &str, stream: TcpStream, is_tcp: bool) -> io::Result<()> {
    if is_tcp {
        stream.set_nodelay(true)?;
    }
    let greeting = greeting(name, stream.peer_addr()?)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        writer.write_all(if line == HELLO { &greeting } else { &line })?;
        line.clear();
    }
    Ok(())
}

fn serve_datagram(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 65_536];
    let (size, from) = socket.recv_from(&mut buffer)?;
    let datagram = &buffer[..size];
    if datagram == HELLO {
        socket.send_to(&greeting(name, from)?, from)?;
    } else {
        socket.send_to(datagram, from)?;
    }
    Ok(())
}

fn greeting(name: &str, from: SocketAddr) -> io::Result<Vec<u8>> {
    // A dual-stack socket sees IPv4 clients as mapped addresses.
    let ip = match from.ip() {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip => ip,
    };
    let mut line = serde_json::to_vec(&Greeting { server: name.to_owned(), seen: (ip, from.port()).into() })?;
    line.push(b'\n');
    Ok(line)
}
