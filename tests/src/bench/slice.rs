//! One slice of one load over one contender, and what it cost.

use std::{
    io::Read,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_common::Protocol;

use super::{
    catalogue::{Position, STREAM_PORT},
    cpu::{Moment, Usage},
    flood::Flood,
    installed::{Installed, Route},
    worker::{Kind, Task},
};
use crate::process::Process;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// Connect, request, response, close; by so many clients.
    Crr(u16),
    /// Request and response on an open connection.
    Rr,
    /// Request and response with datagrams.
    UdpRr,
    /// One TCP stream.
    Stream,
    /// Small packets in one direction.
    Packets,
}

impl Load {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Crr(1) => "CRR".to_owned(),
            Self::Crr(clients) => format!("CRR, {clients} clients"),
            Self::Rr => "RR".to_owned(),
            Self::UdpRr => "UDP RR".to_owned(),
            Self::Stream => "TCP stream".to_owned(),
            Self::Packets => "small packets".to_owned(),
        }
    }

    /// Whether a slice needs some time to begin: a stream's program starts anew, and so does the source of small packets.
    pub const fn begins_slowly(self) -> bool {
        matches!(self, Self::Stream | Self::Packets)
    }

    /// What is counted.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Crr(_) => "connections",
            Self::Rr | Self::UdpRr => "requests",
            Self::Stream => "megabytes",
            Self::Packets => "packets",
        }
    }
}

/// What came of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations, megabytes or packets.
    pub done: f64,
    /// What the machine did meanwhile.
    pub usage: Usage,
    /// CPU time that the client's and the server's process say they used; what they do not see is done for others in interrupts.
    pub told: Duration,
    /// Latency, where there is one.
    pub p50: Duration,
    /// The same.
    pub p99: Duration,
}

impl Sample {
    /// Done per second of the clock.
    pub fn per_wall(&self) -> f64 {
        self.done / self.usage.wall.as_secs_f64()
    }

    /// Done per CPU second of the whole machine.
    pub fn per_cpu(&self) -> f64 {
        self.done / self.usage.cpu.as_secs_f64()
    }
}

/// Runs `load` over `installed` for about `time`.
pub fn run(installed: &Installed, load: Load, route: Route, position: Position, time: Duration) -> Result<Sample> {
    match load {
        Load::Crr(clients) => by_worker(installed, Kind::Connections, clients, route, position, time),
        Load::Rr => by_worker(installed, Kind::Requests, 1, route, position, time),
        Load::UdpRr => by_worker(installed, Kind::Datagrams, 1, route, position, time),
        Load::Stream => stream(installed, route, position, time),
        Load::Packets => packets(installed, position, time),
    }
}

fn by_worker(
    installed: &Installed,
    kind: Kind,
    clients: u16,
    route: Route,
    position: Position,
    time: Duration,
) -> Result<Sample> {
    let protocol = if kind == Kind::Datagrams { Protocol::Udp } else { Protocol::Tcp };
    let port = 80;
    let to = installed.target(route, position, protocol, port)?;
    let server = installed.server(route);
    let served = server.used()?;
    let begun = Moment::begin()?;
    let outcome = installed.client(route).load(Task { kind, to, clients, time })?;
    let usage = Moment::end()?.since(&begun);
    let told = outcome.cpu + server.used()?.saturating_sub(served);
    #[expect(clippy::cast_precision_loss, reason = "a number of operations")]
    let done = outcome.operations as f64;
    ensure!(done > 0.0, "nothing was done");
    Ok(Sample { done, usage, told, p50: outcome.p50, p99: outcome.p99 })
}

fn stream(installed: &Installed, route: Route, position: Position, time: Duration) -> Result<Sample> {
    installed.serve_streams()?;
    let to = installed.target(route, position, Protocol::Tcp, STREAM_PORT)?;
    let begun = Moment::begin()?;
    let megabytes = iperf(installed, route, to, time)?;
    let usage = Moment::end()?.since(&begun);
    Ok(Sample { done: megabytes, usage, told: Duration::ZERO, p50: Duration::ZERO, p99: Duration::ZERO })
}

/// Megabytes per second that a stream is expected to reach, so that a slice takes about as long as it should.
const EXPECTED: u128 = 1500;

/// Sends what takes about `time` and returns how many megabytes have arrived.
fn iperf(installed: &Installed, route: Route, to: SocketAddr, time: Duration) -> Result<f64> {
    let site = installed.client_site(route);
    let mut command = Command::new("iperf3");
    command.args(["--json", "--client", &to.ip().to_string(), "--port", &to.port().to_string()]);
    command.args(["--bytes", &format!("{}K", time.as_millis() * EXPECTED)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // The server may still be starting.
    let begun = Instant::now();
    loop {
        let mut again = Command::new(command.get_program());
        again.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process::spawn(again, site.netns(), site.cgroup())?;
        let mut text = String::new();
        process.child().stdout.take().context("a child has an output")?.read_to_string(&mut text)?;
        process.wait(Duration::from_secs(5))?;
        let report: serde_json::Value = serde_json::from_str(&text).context("iperf3 says no JSON")?;
        if let Some(bytes) = report["end"]["sum_received"]["bytes"].as_f64() {
            return Ok(bytes / 1e6);
        }
        ensure!(begun.elapsed() < Duration::from_secs(5), "iperf3 to {to}: {}", report["error"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn packets(installed: &Installed, position: Position, time: Duration) -> Result<Sample> {
    let flood = Flood::new(installed, position)?;
    let before = flood.arrived()?;
    let begun = Moment::begin()?;
    flood.send_for(time)?;
    let usage = Moment::end()?.since(&begun);
    #[expect(clippy::cast_precision_loss, reason = "a number of packets")]
    let done = (flood.arrived()? - before) as f64;
    ensure!(done > 0.0, "no packet arrives");
    Ok(Sample { done, usage, told: Duration::ZERO, p50: Duration::ZERO, p99: Duration::ZERO })
}
