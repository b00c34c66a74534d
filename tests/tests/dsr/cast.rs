//! Who plays in tests of single packets, and what they tell each other.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::{FrontendKind, NodeConfig, Protocol};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{Packet, Parsed, options},
    router::Router,
};

/// The protocols of direct flows.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// What a direct flow's option begins with: type 158, length 8.
const OPTION: [u8; 2] = [0x9e, 8];

/// The addresses of a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    pub(crate) client: SocketAddr,
    /// This node's NodePort.
    pub(crate) node_port: SocketAddr,
    /// Another frontend with the same backend.
    pub(crate) other: SocketAddr,
    /// The same NodePort on another node.
    pub(crate) elsewhere: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) remote: Target,
    pub(crate) local: Target,
    /// Another pod of this node.
    pub(crate) neighbour: SocketAddr,
    /// A router on the way to the client.
    pub(crate) router: IpAddr,
}

impl Cast {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            client: "172.20.0.200:50000".parse()?,
            node_port: "172.20.0.10:30080".parse()?,
            other: "192.0.2.10:80".parse()?,
            elsewhere: "172.20.0.11:30080".parse()?,
            service: "10.96.0.10:80".parse()?,
            remote: Target { addr: "10.244.1.10:8080".parse()?, local: false },
            local: Target { addr: "10.244.0.11:8080".parse()?, local: true },
            neighbour: "10.244.0.10:40000".parse()?,
            router: "172.20.0.1".parse()?,
        })
    }
}

/// Runs `check` for both protocols on empty maps, with programs that have `flags` and direct server return.
pub(crate) fn each_with(flags: u32, check: impl Fn(&mut Harness, &Router, Cast, Protocol) -> Result<()>) -> Result<()> {
    let router = Router::new()?;
    for protocol in PROTOCOLS {
        let cast = Cast::new()?;
        Harness::with_flags(flags | NodeConfig::DIRECT_RETURN, |harness| {
            router.declare(harness, cast.node_port.ip())?;
            check(harness, &router, cast, protocol)
        })
        .with_context(|| protocol.to_string())?;
    }
    Ok(())
}

/// Runs `check` for both protocols on an entry node: a NodePort whose backend is on another node.
pub(crate) fn each_entry(check: impl Fn(&mut Harness, &Router, Cast, Protocol) -> Result<()>) -> Result<()> {
    each_with(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        check(harness, router, cast, protocol)
    })
}

/// Runs `check` for both protocols on the node of a NodePort's backend.
pub(crate) fn each_backend(
    flags: u32,
    check: impl Fn(&mut Harness, &Router, Cast, Protocol) -> Result<()>,
) -> Result<()> {
    each_with(flags, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local])?;
        check(harness, router, cast, protocol)
    })
}

/// The option that tells of `frontend`.
pub(crate) fn option(frontend: SocketAddr) -> Result<Vec<u8>> {
    let IpAddr::V4(ip) = frontend.ip() else { bail!("{frontend} is not of IPv4") };
    Ok([&OPTION[..], &frontend.port().to_be_bytes(), &ip.octets()].concat())
}

/// The frame that tells of `frontend`.
pub(crate) fn telling(packet: &Packet, frontend: SocketAddr) -> Result<Vec<u8>> {
    options::with_ipv4_options(&packet.frame()?, &option(frontend)?)
}

/// What leaves the entry node by itself: the packet, every checksum checked, and its options.
pub(crate) fn leaves(harness: &Harness, router: &Router, frame: &[u8]) -> Result<(Packet, Vec<u8>)> {
    let outcome = router.run(harness, Hook::FromUplink, frame)?;
    ensure!(outcome.action == Action::Redirect, "{:?}, drops {:?}", outcome.action, harness.drops()?);
    let options = options::ipv4_options(&outcome.frame)?;
    Ok((outcome.packet()?, options))
}

/// The packet must leave the entry node as it is, but for its destination and a hop, and tell of the frontend.
pub(crate) fn tells(harness: &Harness, router: &Router, packet: &Packet, target: Target) -> Result<()> {
    let (out, options) = leaves(harness, router, &packet.frame()?)?;
    ensure!(out == Packet { dst: target.addr, hop_limit: packet.hop_limit - 1, ..packet.clone() }, "{out:?}");
    ensure!(options == option(packet.dst)?, "{options:x?}");
    Ok(())
}

/// The same without telling of the frontend.
pub(crate) fn is_silent(harness: &Harness, router: &Router, packet: &Packet, target: Target) -> Result<()> {
    let (out, options) = leaves(harness, router, &packet.frame()?)?;
    ensure!(out == Packet { dst: target.addr, hop_limit: packet.hop_limit - 1, ..packet.clone() }, "{out:?}");
    ensure!(options.is_empty(), "{options:x?}");
    Ok(())
}

/// The packet must leave the entry node in that node's name.
pub(crate) fn is_masqueraded(harness: &Harness, router: &Router, frame: &[u8], cast: &Cast) -> Result<Packet> {
    let (out, _) = leaves(harness, router, frame)?;
    ensure!(out.src.ip() == cast.node_port.ip() && out.src.port() < 30_000, "{out:?}");
    Ok(out)
}

/// What the backend's node makes of a frame from its uplink that the stack gets: every checksum is checked.
pub(crate) fn arrives(harness: &Harness, router: &Router, frame: &[u8]) -> Result<(Packet, Vec<u8>)> {
    let outcome = router.run(harness, Hook::FromUplink, frame)?;
    ensure!(outcome.action == Action::Pass, "{:?}, drops {:?}", outcome.action, harness.drops()?);
    let options = options::ipv4_options(&outcome.frame)?;
    Ok((Parsed::from_frame(&outcome.frame)?.transport()?, options))
}

/// The pod must get the packet as it is, without what it told, and its answer must leave in the name of `frontend`.
pub(crate) fn is_adopted(harness: &Harness, router: &Router, packet: &Packet, frontend: SocketAddr) -> Result<()> {
    let sent = telling(packet, frontend)?;
    let outcome = router.run(harness, Hook::FromUplink, &sent)?;
    ensure!(outcome.action == Action::Pass, "{:?}, drops {:?}", outcome.action, harness.drops()?);
    ensure!(outcome.frame == packet.frame()?, "changed:\n{:x?}\n{:x?}", packet.frame()?, outcome.frame);
    is_answered(harness, router, packet, frontend)
}

/// The answer to a packet of the client must leave in the name of `frontend`.
pub(crate) fn is_answered(harness: &Harness, router: &Router, packet: &Packet, frontend: SocketAddr) -> Result<()> {
    let answer = packet.answer();
    let out = router.passes(harness, Hook::ToUplink, &answer)?;
    ensure!(out == Packet { src: frontend, ..answer }, "{out:?}");
    Ok(())
}
