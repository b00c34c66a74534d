//! The serving side: threads that block in system calls, so that nothing but the kernel's work counts.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// The request of a client that wants the connection closed after the answer.
pub(super) const CLOSE: u8 = b'c';
/// The request of a client that goes on.
pub(super) const STAY: u8 = b's';

/// How many connections and datagrams are served at the same time: more than the clients of any load.
const THREADS: usize = 12;

/// Serves on `port` for as long as the process lives.
pub(super) fn start(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for _ in 0..THREADS {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            loop {
                // A client that is gone before it is accepted, or that breaks off, concerns nobody else.
                if let Ok((stream, _)) = listener.accept() {
                    answer(stream).ok();
                }
            }
        });
    }
    thread::spawn(move || {
        let mut byte = [0];
        loop {
            // An ICMP error about an earlier answer ends a call as well.
            if let Ok((_, client)) = socket.recv_from(&mut byte) {
                socket.send_to(&byte, client).ok();
            }
        }
    });
    Ok(())
}

/// Answers byte by byte. Closing comes first here, so that the client's port is free again at once and the server has the
/// connection that waits.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&byte)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if byte[0] == CLOSE {
            return Ok(());
        }
    }
}
