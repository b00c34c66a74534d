//! The client's half of a conversation.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::protocol::{Answer, Ask, Failure, Greeting, Transport};

/// The line or datagram that asks a server for its name.
pub const HELLO: &[u8] = b"hello\n";

/// A connection that may be used again.
#[derive(Debug)]
pub enum Open {
    /// TCP.
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
    let patience = ask.patience.max(Duration::from_millis(1));
    if ask.transport == Transport::Tcp {
        let stream = TcpStream::connect_timeout(&ask.to, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        return Ok(Open::Stream(BufReader::new(stream)));
    }
    let any: SocketAddr = match ask.to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(patience))?;
    if ask.transport == Transport::Udp {
        socket.connect(ask.to)?;
    }
    Ok(Open::Datagram(socket, ask.clone()))
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
