//! Real clients and servers: one `traffic` process per pod, host and external client, driven over JSON lines.

pub mod client;
pub mod load;
pub mod protocol;
pub mod sctp;
pub mod server;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use dataplane_common::Protocol;

pub use self::protocol::{Answer, Ask, Failure, FailureKind, Report};
use self::protocol::{Reply, ReplyLine, Request, RequestLine};
use crate::{binaries, cgroup::Cgroup, netns::Netns, process::Process};

/// How long a client waits unless it is told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A process that speaks for a pod, a host or an external client.
#[derive(Debug)]
pub struct Traffic {
    process: Process,
    input: Mutex<ChildStdin>,
    waiting: Arc<Mutex<BTreeMap<u64, mpsc::Sender<Reply>>>>,
    next: AtomicU64,
}

impl Traffic {
    /// Starts the process inside `netns` and `cgroup`.
    pub fn start(netns: &Netns, cgroup: Option<&Cgroup>) -> Result<Self> {
        let mut command = Command::new(binaries::own("traffic")?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command, netns, cgroup)?;
        let input = process.child().stdin.take().context("a pipe to the traffic process")?;
        let output = process.child().stdout.take().context("a pipe from the traffic process")?;
        let waiting = Arc::default();
        let deliver = Arc::clone(&waiting);
        thread::spawn(move || deliver_replies(output, &deliver));
        Ok(Self { process, input: Mutex::new(input), waiting, next: AtomicU64::new(1) })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Serves `protocol` on `address`, answering as `name`, until the process ends.
    pub fn serve(&self, name: &str, protocol: Protocol, address: SocketAddr) -> Result<()> {
        match self.request(Request::Serve { name: name.to_owned(), protocol: protocol.into(), address })? {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => bail!("{name} cannot serve {protocol} on {address}: {failure}"),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }

    /// Asks once, over a connection of its own.
    pub fn ask(&self, ask: &Ask) -> Result<Result<Answer, Failure>> {
        match self.request(Request::Ask(ask.clone()))? {
            Reply::Answer(answer) => Ok(Ok(answer)),
            Reply::Failed(failure) => Ok(Err(failure)),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }

    /// Asks `count` times, one after the other.
    pub fn repeat(&self, ask: &Ask, count: u32) -> Result<Report> {
        match self.request(Request::Repeat { ask: ask.clone(), count })? {
            Reply::Report(report) => Ok(report),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }

    /// Opens a connection (or a connected UDP socket) that stays.
    pub fn open(&self, ask: &Ask) -> Result<Connection<'_>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        match self.request(Request::Open { connection: id, ask: ask.clone() })? {
            Reply::Answer(answer) => Ok(Connection { traffic: self, id, answer }),
            Reply::Failed(failure) => bail!("cannot open a connection to {}: {failure}", ask.to),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }

    /// Starts asking `per_second` times a second, until the load is finished.
    pub fn load(&self, ask: &Ask, per_second: u32) -> Result<Load<'_>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        match self.request(Request::StartLoad { load: id, ask: ask.clone(), per_second })? {
            Reply::Done => Ok(Load { traffic: self, id }),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }

    fn request(&self, request: Request) -> Result<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let mut line = serde_json::to_vec(&RequestLine { id, request })?;
        line.push(b'\n');
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.write_all(&line).context("the traffic process has ended")?;
        drop(input);
        receiver.recv().context("the traffic process has ended")
    }
}

/// A connection that stays open in the traffic process.
#[derive(Debug)]
pub struct Connection<'a> {
    traffic: &'a Traffic,
    id: u64,
    answer: Answer,
}

impl Connection<'_> {
    /// What the server said when the connection was made.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Sends a line and waits for it to come back; the server's name and the time it took.
    pub fn ping(&self) -> Result<Result<Answer, Failure>> {
        match self.traffic.request(Request::Ping { connection: self.id })? {
            Reply::Answer(answer) => Ok(Ok(answer)),
            Reply::Failed(failure) => Ok(Err(failure)),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        // A process that has ended has closed it already.
        self.traffic.request(Request::Close { connection: self.id }).ok();
    }
}

/// Requests that go on in the traffic process.
#[derive(Debug)]
pub struct Load<'a> {
    traffic: &'a Traffic,
    id: u64,
}

impl Load<'_> {
    /// Stops the load and tells how it went.
    pub fn finish(self) -> Result<Report> {
        match self.traffic.request(Request::FinishLoad { load: self.id })? {
            Reply::Report(report) => Ok(report),
            reply => bail!("unexpected reply {reply:?}"),
        }
    }
}

fn deliver_replies(output: ChildStdout, waiting: &Mutex<BTreeMap<u64, mpsc::Sender<Reply>>>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { break };
        let Ok(ReplyLine { id, reply }) = serde_json::from_str(&line) else {
            eprintln!("traffic process: {line}");
            continue;
        };
        if let Some(sender) = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) {
            // Who does not wait any more does not need the reply.
            sender.send(reply).ok();
        }
    }
    // Whoever still waits learns that the process has ended.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
