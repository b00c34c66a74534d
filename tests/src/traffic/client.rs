//! The client's half of a conversation.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{
    protocol::{Answer, Ask, Failure, Greeting, Transport},
    sctp,
};
use crate::pace;

/// The line or datagram that asks a server for its name.
pub const HELLO: &[u8] = b"hello\n";

/// A connection that may be used again.
#[derive(Debug)]
pub enum Open {
    /// TCP or SCTP.
    Stream(BufReader<TcpStream>),
    /// UDP, and whom to send to.
    Datagram(UdpSocket, Ask),
}

/// Connects, and has the server introduce itself.
pub fn open(ask: &Ask) -> Result<(Open, Answer), Failure> {
    let begun = Instant::now();
    let mut open = connect(ask).map_err(|error| Failure::new(&error, begun.elapsed()))?;
    let mut answer = open.ping_since(begun)?;
    open.echo(ask.payload).map_err(|error| Failure::new(&error, begun.elapsed()))?;
    answer.took = begun.elapsed();
    Ok((open, answer))
}

/// Asks once.
pub fn ask(question: &Ask) -> Result<Answer, Failure> {
    open(question).map(|(_, answer)| answer)
}

impl Open {
    /// Has the server say its name again.
    pub fn ping(&mut self) -> Result<Answer, Failure> {
        self.ping_since(Instant::now())
    }

    fn ping_since(&mut self, begun: Instant) -> Result<Answer, Failure> {
        self.try_ping(begun).map_err(|error| Failure::new(&error, begun.elapsed()))
    }

    fn try_ping(&mut self, begun: Instant) -> io::Result<Answer> {
        let (greeting, local, peer) = match self {
            Self::Stream(stream) => {
                stream.get_mut().write_all(HELLO)?;
                let mut line = String::new();
                if stream.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                (line.into_bytes(), stream.get_ref().local_addr()?, stream.get_ref().peer_addr()?)
            }
            Self::Datagram(socket, ask) => {
                let (datagram, from) = exchange(socket, ask, HELLO)?;
                let peer = if ask.transport == Transport::Udp { socket.peer_addr()? } else { from };
                (datagram, socket.local_addr()?, peer)
            }
        };
        let Greeting { server, seen } = serde_json::from_slice(&greeting)?;
        Ok(Answer { server, seen, local, peer, took: begun.elapsed() })
    }

    /// Sends `size` bytes and checks that they come back as they were.
    fn echo(&mut self, size: usize) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let sent: Vec<u8> = (0..size).map(|index| b'a' + (index % 26) as u8).collect();
        let back = match self {
            Self::Stream(stream) => {
                let mut writer = stream.get_ref().try_clone()?;
                let line = [sent.as_slice(), b"\n"].concat();
                // Both directions at once, else two full buffers wait for each other.
                let writing = std::thread::spawn(move || writer.write_all(&line));
                let mut back = vec![0; size + 1];
                stream.read_exact(&mut back)?;
                back.truncate(size);
                writing.join().map_err(|_| io::Error::other("the writer panicked"))??;
                back
            }
            Self::Datagram(socket, ask) => exchange(socket, ask, &sent)?.0,
        };
        if back == sent { Ok(()) } else { Err(io::Error::other("the payload came back changed")) }
    }
}

fn connect(ask: &Ask) -> io::Result<Open> {
    // `set_read_timeout` takes no zero.
    let patience = pace::allow(ask.patience).max(Duration::from_millis(1));
    if ask.transport.is_connection() {
        let stream =
            if ask.transport == Transport::Tcp { tcp(ask, patience)? } else { sctp::connect(ask.to, patience)? };
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        return Ok(Open::Stream(BufReader::new(stream)));
    }
    let ip = ask.from_ip.unwrap_or_else(|| unspecified(ask.to));
    let socket = if ask.from_port == 0 {
        bind_unused(ip)?
    } else {
        bind_shared(Type::DGRAM, (ip, ask.from_port).into())?.into()
    };
    socket.set_read_timeout(Some(patience))?;
    if ask.transport == Transport::Udp {
        socket.connect(ask.to)?;
    }
    Ok(Open::Datagram(socket, ask.clone()))
}

fn tcp(ask: &Ask, patience: Duration) -> io::Result<TcpStream> {
    let stream: TcpStream = if ask.from_port == 0 {
        TcpStream::connect_timeout(&ask.to, patience)?
    } else {
        let socket = bind_shared(Type::STREAM, (unspecified(ask.to), ask.from_port).into())?;
        socket.connect_timeout(&ask.to.into(), patience)?;
        socket.into()
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket with a port that others may have as well.
fn bind_shared(kind: Type, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

const fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// A socket with a port of the ephemeral range that no socket of this process has had for long: a service remembers a client's
/// datagrams for minutes, and the kernel soon gives out a port again.
fn bind_unused(ip: IpAddr) -> io::Result<UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 32_768 + NEXT.fetch_add(1, Ordering::Relaxed) % 28_000;
        match UdpSocket::bind((ip, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
}

fn exchange(socket: &UdpSocket, ask: &Ask, datagram: &[u8]) -> io::Result<(Vec<u8>, SocketAddr)> {
    if ask.transport == Transport::Udp {
        socket.send(datagram)?;
    } else {
        socket.send_to(datagram, ask.to)?;
    }
    let mut buffer = vec![0; 65_536];
    let (size, from) = socket.recv_from(&mut buffer)?;
    buffer.truncate(size);
    Ok((buffer, from))
}
