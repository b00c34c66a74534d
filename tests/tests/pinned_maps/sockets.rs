//! What is swept of the notes about sockets: real sockets of this process, and cookies that nobody has.

use std::net::{TcpListener, TcpStream, UdpSocket};

use dataplane_agent::datapath::sockets_gone;
use dataplane_common::{SocketKey, SocketOrigin};

use super::*;

/// A cookie that no socket has: the kernel counts up from zero.
const NOBODYS: u64 = 1 << 60;

fn cookie(socket: &impl std::os::fd::AsRawFd) -> Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>())?;
    // SAFETY: the value is as long as it is said to be.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, value, &raw mut length)
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(cookie)
}

fn key(cookie: u64, protocol: Protocol) -> SocketKey<[u32; 1]> {
    let cookie = SocketKey::<[u32; 1]>::cookie_words(cookie);
    SocketKey { cookie, addr: [9], port: BePort::new(8080), protocol: protocol as u8, pad: 0 }
}

#[test]
fn notes_about_sockets_that_are_gone_are_removed_and_those_of_others_stay() -> Result<()> {
    let pins = Pins::create()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(server.local_addr()?)?;
    // A TCP socket may stay for its last packets when nobody has it any more.
    let closed = UdpSocket::bind("127.0.0.1:0")?;
    let [connected, unconnected] = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("[::]:0")?];
    connected.connect("127.0.0.1:9")?;
    let living = [
        key(cookie(&stream)?, Protocol::Tcp),
        key(cookie(&connected)?, Protocol::Udp),
        key(cookie(&unconnected)?, Protocol::Udp),
    ];
    let gone = [key(cookie(&closed)?, Protocol::Udp), key(NOBODYS, Protocol::Udp), key(NOBODYS + 1, Protocol::Tcp)];
    drop(closed);
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::SOCKETS4)?))?;
    let origin = SocketOrigin { addr: [7], port: BePort::new(80), pad: 0, backend: 1, generation: 1, service: 1 };
    for key in living.iter().chain(&gone) {
        raw.insert(*key, origin, 0)?;
    }
    let mut sweeps = sockets_gone::sweeps(pins.path())?;
    let sweep = sweeps.iter_mut().find(|sweep| sweep.map() == map::SOCKETS4.name).context("not swept")?;
    let mut pass = |now| -> Result<(u32, u32)> {
        let swept = sweep.step(Ticks(now))?;
        ensure!(swept.is_complete, "{swept:?}");
        Ok((swept.seen, swept.removed))
    };
    assert_eq!(pass(100)?, (6, 0));
    assert_eq!(pass(105)?, (6, 0), "a socket may be between two connections");
    assert_eq!(pass(130)?, (6, 3));
    assert_eq!(pass(200)?, (3, 0));
    for key in living {
        assert!(raw.get(&key, 0).is_ok(), "{key:?}");
    }
    Ok(())
}
