//! The asking side: one thread per client, each of which does the same thing until time is up.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::{
    Kind, Outcome, Task, cpu_time,
    server::{CLOSE, STAY},
};

/// How long an answer may take on an open connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// Does what `task` says.
pub(super) fn run(task: Task) -> io::Result<Outcome> {
    let used = cpu_time();
    let work = || match task.kind {
        Kind::Connections => repeat(task.time, || connection(task.to)),
        Kind::Requests => requests(task),
        Kind::Datagrams => datagrams(task),
    };
    let mut took = thread::scope(|scope| {
        let clients: Vec<_> = (0..task.clients).map(|_| scope.spawn(work)).collect();
        let ended =
            clients.into_iter().map(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.collect::<io::Result<Vec<_>>>()
    })?
    .concat();
    took.sort_unstable();
    let quantile =
        |percent: usize| Duration::from_nanos(took.get(took.len() * percent / 100).copied().unwrap_or(0).into());
    let operations = took.len().try_into().map_err(io::Error::other)?;
    Ok(Outcome { operations, p50: quantile(50), p99: quantile(99), cpu: cpu_time().saturating_sub(used) })
}

/// Repeats `work` for `time` and returns how many nanoseconds each took.
fn repeat(time: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<Vec<u32>> {
    let begun = Instant::now();
    let mut took = Vec::with_capacity(1 << 16);
    let mut before = begun;
    while before - begun < time {
        work()?;
        let now = Instant::now();
        took.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        before = now;
    }
    Ok(took)
}

fn connection(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    exchange(&mut stream, CLOSE)?;
    // The server's end of the connection: it has closed before we do.
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn requests(task: Task) -> io::Result<Vec<u32>> {
    let mut stream = TcpStream::connect(task.to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    repeat(task.time, || exchange(&mut stream, STAY))
}

fn exchange(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    stream.write_all(&[byte])?;
    stream.read_exact(&mut [0])
}

fn datagrams(task: Task) -> io::Result<Vec<u32>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(task.to)?;
    // A lost datagram costs this much and is asked again: nothing is lost where nothing overflows.
    socket.set_read_timeout(Some(PATIENCE))?;
    repeat(task.time, || {
        socket.send(&[STAY])?;
        socket.recv(&mut [0]).map(drop)
    })
}
