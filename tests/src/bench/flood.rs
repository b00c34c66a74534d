//! Small packets at the node's uplink as fast as it takes them, and a sink where they leave it again.
//!
//! The frames come out of the fabric's end of the node's uplink, made by the kernel without any stack (`BPF_PROG_TEST_RUN` with
//! live frames), and are counted and dropped when they come back to that end on their way to the other node, in the form in which the node
//! sends them: a network card would make no socket buffer of a frame that is none. So nearly all CPU time is the node's own: receiving,
//! translating, routing, sending.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane_common::Protocol;
use etherparse::PacketBuilder;

use super::{
    catalogue::Position,
    installed::{Installed, Route, v4},
    programs::{Counter, Link, Program, SMALLEST, Side},
};
use crate::{
    netns::Netns,
    offload::{self, Feature},
};

/// How many flows there are: source ports of one client.
const FLOWS: u16 = 64;
/// The first of them.
const FIRST: u16 = 40_000;
/// Frames that are sent by one call, each of which waits for an RCU grace period at its end.
const BURST: u32 = 1 << 14;
/// What fits into the smallest Ethernet frame.
const PAYLOAD: [u8; 18] = [0; 18];
/// Where UDP's checksum stands.
const CHECKSUM: usize = 40;

/// A flood towards one NodePort.
#[derive(Debug)]
pub struct Flood<'a> {
    fabric: &'a Netns,
    frame: [u8; SMALLEST],
    source: Program,
    counter: Counter,
    _sink: Link,
}

/// The fabric's end of node a's uplink.
const PORT: &str = "up-a";

impl<'a> Flood<'a> {
    /// Prepares the frames, and puts the sink in place: nothing else gets through until this is dropped.
    pub fn new(installed: &'a Installed, position: Position) -> Result<Self> {
        let fabric = &installed.cluster.fabric;
        let node = installed.cluster.node("a").host.netns();
        let other = installed.cluster.node("b").host.netns();
        // Frames that are no socket buffers enter a veth only where its receiving end polls, which GRO turns on.
        offload::set(node, "eth0", Feature::Gro, true)?;
        offload::set(fabric, PORT, Feature::Gro, true)?;
        let [mac, next, client] = [mac(node)?, mac(other)?, mac(installed.cluster.external.netns())?];
        // The sink would swallow the answers of neighbours.
        node.ip(&format!(
            "neigh replace {} lladdr {} dev eth0 nud permanent\nneigh replace {} lladdr {} dev eth0 nud permanent\n",
            v4(&installed.cluster.node("b").host),
            text(next),
            v4(&installed.cluster.external),
            text(client)
        ))?;
        let to = installed.target(Route::NodePort, position, Protocol::Udp, 80)?;
        let std::net::IpAddr::V4(ip) = to.ip() else { anyhow::bail!("{to} is not IPv4") };
        let from = v4(&installed.cluster.external).octets();
        let builder = PacketBuilder::ethernet2(client, mac).ipv4(from, ip.octets(), 64).udp(FIRST, to.port());
        let mut frame = Vec::new();
        builder.write(&mut frame, &PAYLOAD)?;
        let mut frame = <[u8; SMALLEST]>::try_from(frame).ok().context("the payload fills the smallest frame")?;
        // No checksum, which UDP over IPv4 allows: the source port changes.
        frame[CHECKSUM..CHECKSUM + 2].fill(0);
        let counter = Counter::new()?;
        let sink = Program::sink(&counter)?.attach(fabric, PORT, Side::Ingress)?;
        if let Some(carrying) = installed.carrying() {
            // For good: this is the last load.
            Program::frame_sink(&counter)?.replace(carrying.link(PORT)?)?;
        }
        let source = Program::source(&frame, FIRST, FLOWS)?;
        Ok(Self { fabric, frame, source, counter, _sink: sink })
    }

    /// Sends for about `time`.
    pub fn send_for(&self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.source.send(self.fabric, PORT, &self.frame, BURST)?;
        }
        Ok(())
    }

    /// How many packets have left the node.
    pub fn arrived(&self) -> Result<u64> {
        self.counter.read()
    }
}

/// The MAC address of `eth0` in `netns`.
pub fn mac(netns: &Netns) -> Result<[u8; 6]> {
    let text = netns.output("ip", &["-oneline", "link", "show", "eth0"])?;
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let bytes = address.context("eth0 has no MAC address")?.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().context("a MAC address has six bytes")
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
