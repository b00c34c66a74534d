//! Processes inside pods that make and serve load: told what to do by a line of JSON, silent while they do it.

pub mod client;
pub mod server;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::fd::AsRawFd,
    process::{ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{binaries, cluster::Site, process::Process};

/// What a worker is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Serve TCP and UDP on this port of all addresses, from now on.
    Serve(u16),
    /// Make load.
    Load(Task),
    /// Say how much CPU time has been used so far.
    Usage,
}

/// A slice of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What is done over and over.
    pub kind: Kind,
    /// Whom with.
    pub to: SocketAddr,
    /// How many do it at the same time.
    pub clients: u16,
    /// For how long.
    pub time: Duration,
}

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Connect, one byte there and one back, and the server closes first.
    Connections,
    /// One byte there and one back, on one connection.
    Requests,
    /// The same with datagrams of one socket.
    Datagrams,
}

/// What a worker says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It serves.
    Serving,
    /// The load is over.
    Loaded(Outcome),
    /// CPU time used so far.
    Used(Duration),
    /// It did not work.
    Failed(String),
}

/// What came of a slice of load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Completed operations.
    pub operations: u64,
    /// Half of the operations took no longer.
    pub p50: Duration,
    /// All but one of a hundred took no longer.
    pub p99: Duration,
    /// CPU time of the client's process.
    pub cpu: Duration,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    process: Process,
    replies: BufReader<ChildStdout>,
}

/// How long a worker may take beyond the time of its task.
const PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    /// Starts one in `site`.
    pub fn start(site: &Site) -> Result<Self> {
        let mut command = Command::new(binaries::own("sluice-bench")?);
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command, site.netns(), site.cgroup())?;
        let replies = BufReader::new(process.child().stdout.take().context("a worker has an output")?);
        Ok(Self(Mutex::new(Inner { process, replies })))
    }

    /// Serves on `port` from now on.
    pub fn serve(&self, port: u16) -> Result<()> {
        match self.ask(Request::Serve(port), PATIENCE)? {
            Reply::Serving => Ok(()),
            other => bail!("a server answers {other:?}"),
        }
    }

    /// Makes load and returns when it is over.
    pub fn load(&self, task: Task) -> Result<Outcome> {
        match self.ask(Request::Load(task), task.time + PATIENCE)? {
            Reply::Loaded(outcome) => Ok(outcome),
            Reply::Failed(why) => bail!("{:?} to {}: {why}", task.kind, task.to),
            other => bail!("a client answers {other:?}"),
        }
    }

    /// CPU time used so far.
    pub fn used(&self) -> Result<Duration> {
        match self.ask(Request::Usage, PATIENCE)? {
            Reply::Used(time) => Ok(time),
            other => bail!("a worker answers {other:?}"),
        }
    }

    fn ask(&self, request: Request, patience: Duration) -> Result<Reply> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        inner.process.child().stdin.as_mut().context("a worker has an input")?.write_all(&line)?;
        let mut wait = libc::pollfd { fd: inner.replies.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = patience.as_millis().try_into()?;
        // SAFETY: the pointer is that of one descriptor to wait for, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut wait, 1, milliseconds) };
        ensure!(ready > 0, "a worker says nothing for {patience:?} after {request:?}");
        let mut line = String::new();
        inner.replies.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a worker has ended on {request:?}"))
    }
}

/// The worker's side: reads requests from `input` until it ends, and answers one after the other.
pub fn run(input: impl Read, mut output: impl Write) -> Result<()> {
    // The end of the input is the end of whoever asks, and so of this process.
    for line in BufReader::new(input).lines() {
        let reply = match serde_json::from_str(&line?).context("not a request")? {
            Request::Serve(port) => server::start(port).map(|()| Reply::Serving),
            Request::Load(task) => client::run(task).map(Reply::Loaded),
            Request::Usage => Ok(Reply::Used(cpu_time())),
        };
        let reply = reply.unwrap_or_else(|error: io::Error| Reply::Failed(error.to_string()));
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()?;
    }
    Ok(())
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    // It fails for no reason that could happen to ourselves.
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    of(usage.user_time()) + of(usage.system_time())
}
