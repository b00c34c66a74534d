//! What the test bed and its traffic processes say to each other.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use dataplane_common::Protocol;
use serde::{Deserialize, Serialize};

/// A line to the traffic process.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestLine {
    /// Comes back with the reply; replies may overtake each other.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// A line from the traffic process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyLine {
    /// The request's.
    pub id: u64,
    /// How it went.
    pub reply: Reply,
}

/// What a traffic process can do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Serve on an address from now on.
    Serve { name: String, protocol: Transport, address: SocketAddr },
    /// One question and answer.
    Ask(Ask),
    /// Many, one after the other.
    Repeat { ask: Ask, count: u32 },
    /// Open a connection and keep it.
    Open { connection: u64, ask: Ask },
    /// Use a kept connection.
    Ping { connection: u64 },
    /// Close a kept connection.
    Close { connection: u64 },
    /// Ask again and again in the background.
    StartLoad { load: u64, ask: Ask, per_second: u32 },
    /// Stop doing so.
    FinishLoad { load: u64 },
}

/// How a request went.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// A server answered.
    Answer(Answer),
    /// Nobody did.
    Failed(Failure),
    /// The sum of many.
    Report(Report),
}

/// A transport protocol that the bed speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// A connection per question.
    Tcp,
    /// A connected socket per question.
    Udp,
    /// A socket that names its peer with each datagram, as DNS servers and some resolvers do.
    UdpUnconnected,
    /// An association per question.
    Sctp,
}

impl Transport {
    /// Whether both ends read from and write to one connection.
    pub const fn is_connection(self) -> bool {
        matches!(self, Self::Tcp | Self::Sctp)
    }
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::UdpUnconnected => "UDP (unconnected)",
            Self::Sctp => "SCTP",
        })
    }
}

/// A question: whom to ask, and how long to wait.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// How.
    pub transport: Transport,
    /// Whom.
    pub to: SocketAddr,
    /// For the connection and for the answer, each.
    pub patience: Duration,
    /// Bytes of payload to send and to get back, beyond the greeting; zero for none.
    pub payload: usize,
    /// The port to ask from with TCP or UDP, which others may have as well; zero for any.
    pub from_port: u16,
    /// The address to ask from with a datagram; any when there is none.
    pub from_ip: Option<IpAddr>,
}

impl Ask {
    /// A question with the usual patience.
    pub fn new(transport: impl Into<Transport>, to: SocketAddr) -> Self {
        Self { transport: transport.into(), to, patience: super::PATIENCE, payload: 0, from_port: 0, from_ip: None }
    }

    /// The same, waiting for `patience`.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same, with `payload` bytes to be echoed.
    pub fn payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    /// The same, from `from_port`.
    pub fn from_port(self, from_port: u16) -> Self {
        Self { from_port, ..self }
    }

    /// The same, a datagram from `ip`.
    pub fn from_ip(self, ip: IpAddr) -> Self {
        Self { from_ip: Some(ip), ..self }
    }
}

/// Who answered, and what both ends saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The client's address as the client saw it.
    pub local: SocketAddr,
    /// The server's address as the client saw it: `getpeername`, or the datagram's source.
    pub peer: SocketAddr,
    /// From the first system call to the answer.
    pub took: Duration,
}

/// The first line a server sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// The server's name.
    pub server: String,
    /// The client's address as the server sees it.
    pub seen: SocketAddr,
}

/// Why nobody answered.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?} after {took:?}: {text}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The error in words.
    pub text: String,
    /// From the first system call to the failure.
    pub took: Duration,
}

/// What a failed client got to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailureKind {
    /// RST, or ICMP port or protocol unreachable.
    Refused,
    /// Nothing at all.
    TimedOut,
    /// No route, here or on the way.
    Unreachable,
    /// An established connection was reset.
    Reset,
    /// An established connection was closed.
    Closed,
    /// Administratively prohibited.
    Denied,
    /// Something else.
    Other,
}

impl Failure {
    /// A failure from a system call's error.
    pub fn new(error: &io::Error, took: Duration) -> Self {
        use io::ErrorKind as E;
        let kind = match error.kind() {
            E::ConnectionRefused => FailureKind::Refused,
            E::TimedOut | E::WouldBlock => FailureKind::TimedOut,
            E::HostUnreachable | E::NetworkUnreachable => FailureKind::Unreachable,
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe => FailureKind::Reset,
            E::UnexpectedEof => FailureKind::Closed,
            E::PermissionDenied => FailureKind::Denied,
            // What an association ends with for an ICMP protocol unreachable (`sctp_sf_cookie_wait_icmp_abort`).
            _ if error.raw_os_error() == Some(libc::ENOPROTOOPT) => FailureKind::Refused,
            _ => FailureKind::Other,
        };
        Self { kind, text: error.to_string(), took }
    }
}

/// The sum of many questions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Answers per server.
    pub servers: BTreeMap<String, u32>,
    /// Failures by their text.
    pub failures: BTreeMap<String, u32>,
    /// How long answers took, sorted.
    pub took: Vec<Duration>,
}

impl Report {
    /// Adds one.
    pub fn add(&mut self, result: &Result<Answer, Failure>) {
        match result {
            Ok(answer) => {
                *self.servers.entry(answer.server.clone()).or_default() += 1;
                self.took.push(answer.took);
            }
            Err(failure) => {
                *self.failures.entry(format!("{:?}: {}", failure.kind, failure.text)).or_default() += 1;
            }
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (server, count) in &other.servers {
            *self.servers.entry(server.clone()).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
        self.took.extend(&other.took);
        self.took.sort_unstable();
    }

    /// Number of questions that were answered.
    pub fn answered(&self) -> u32 {
        self.servers.values().sum()
    }

    /// Number of questions that were not.
    pub fn failed(&self) -> u32 {
        self.failures.values().sum()
    }

    /// The time that the given share of the answers stayed below; zero without answers.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.took.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (last as f64 * share) as usize;
        self.took.get(index).copied().unwrap_or_default()
    }
}
