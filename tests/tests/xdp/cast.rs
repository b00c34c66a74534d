//! Who plays in tests of single packets.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use dataplane_common::{FrontendKind, Protocol};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::Packet,
    router::Router,
    topology::IpVersion,
};

/// TCP and UDP; others are not for XDP.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The addresses of a test, of one family.
pub(crate) struct Cast {
    pub(crate) version: IpVersion,
    pub(crate) client: SocketAddr,
    pub(crate) node: IpAddr,
    pub(crate) node_port: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) remote: Target,
    pub(crate) local: Target,
}

impl Cast {
    fn new(version: IpVersion) -> Result<Self> {
        let pick = |v4: &str, v6: &str| -> Result<SocketAddr> {
            Ok(if version == IpVersion::V4 { v4.parse()? } else { v6.parse()? })
        };
        let node_port = pick("172.20.0.10:30080", "[fd20::a]:30080")?;
        Ok(Self {
            version,
            client: pick("172.20.0.200:50000", "[fd20::c8]:50000")?,
            node: node_port.ip(),
            node_port,
            service: pick("10.96.0.10:80", "[fd96::a]:80")?,
            remote: Target { addr: pick("10.244.1.10:8080", "[fd44:0:0:1::a]:8080")?, local: false },
            local: Target { addr: pick("10.244.0.11:8080", "[fd44::b]:8080")?, local: true },
        })
    }
}

/// Runs `check` for every family and protocol on empty maps, with XDP on the uplink.
pub(crate) fn each(check: impl Fn(&mut Harness, &Router, &Cast, Protocol) -> Result<()> + Sync) -> Result<()> {
    let router = Router::new()?;
    let mut link = None;
    for version in IpVersion::BOTH {
        for protocol in PROTOCOLS {
            let cast = Cast::new(version)?;
            Harness::with(|harness| {
                if link.is_none() {
                    link = Some(router.attach_xdp(harness)?);
                }
                router.declare(harness, cast.node)?;
                check(harness, &router, &cast, protocol)
            })
            .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

/// The same with a NodePort whose only backend is on another node.
pub(crate) fn each_remote(check: impl Fn(&Harness, &Router, &Cast, Protocol) -> Result<()> + Sync) -> Result<()> {
    each(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        check(harness, router, cast, protocol)
    })
}

/// The packet that XDP sends back out of the uplink.
pub(crate) fn transmits(harness: &Harness, router: &Router, packet: &Packet) -> Result<Packet> {
    let frame = packet.frame()?;
    let outcome = router.run(harness, Hook::XdpFromUplink, &frame)?;
    if outcome.action == Action::Transmit {
        return outcome.packet();
    }
    // The first packet of a tick is for tc.
    router.meets(harness, Hook::FromUplink, &frame, Action::Redirect)?;
    router.meets(harness, Hook::XdpFromUplink, &frame, Action::Transmit)?.transport()
}

/// Sees that XDP leaves `frame` as it is, to whoever comes next.
pub(crate) fn untouched(harness: &Harness, router: &Router, frame: &[u8]) -> Result<()> {
    let outcome = router.run(harness, Hook::XdpFromUplink, frame)?;
    ensure!(outcome.action == Action::Pass, "{:?}", outcome.action);
    ensure!(outcome.frame == frame, "changed:\n{frame:x?}\n{:x?}", outcome.frame);
    Ok(())
}
