//! Who sends what to whom, and what a program must make of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::{NodeConfig, Protocol, addr::Addr as _};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{Icmp, Packet, Parsed},
    topology::IpVersion,
};

/// The addresses of a test, of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    pub(crate) version: IpVersion,
    pub(crate) pod: SocketAddr,
    pub(crate) client: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) node_port: SocketAddr,
    pub(crate) local: Target,
    pub(crate) remote: Target,
    pub(crate) hairpin: IpAddr,
    /// The router between the nodes: it sends errors in its own name.
    pub(crate) router: IpAddr,
    /// A second address of the service CIDR.
    pub(crate) unowned: SocketAddr,
}

impl Cast {
    pub(crate) fn new(version: IpVersion) -> Result<Self> {
        let pick = |v4: &str, v6: &str| -> Result<SocketAddr> {
            Ok(if version == IpVersion::V4 { v4.parse()? } else { v6.parse()? })
        };
        Ok(Self {
            version,
            pod: pick("10.244.0.10:40000", "[fd44::a]:40000")?,
            client: pick("172.20.0.200:50000", "[fd20::c8]:50000")?,
            service: pick("10.96.0.10:80", "[fd96::a]:80")?,
            node_port: pick("172.20.0.10:30080", "[fd20::a]:30080")?,
            local: Target { addr: pick("10.244.0.11:8080", "[fd44::b]:8080")?, local: true },
            remote: Target { addr: pick("10.244.1.10:8080", "[fd44:0:0:1::a]:8080")?, local: false },
            hairpin: match version {
                IpVersion::V4 => NodeConfig::DEFAULT_HAIRPIN4.to_ip(),
                IpVersion::V6 => NodeConfig::DEFAULT_HAIRPIN6.to_ip(),
            },
            router: pick("172.20.0.1:0", "[fd20::1]:0")?.ip(),
            unowned: pick("10.96.0.77:80", "[fd96::4d]:80")?,
        })
    }

    /// The service CIDR, and its length.
    pub(crate) fn services(&self) -> (IpAddr, u32) {
        match self.version {
            IpVersion::V4 => ([10, 96, 0, 0].into(), 16),
            IpVersion::V6 => ([0xfd96, 0, 0, 0, 0, 0, 0, 0].into(), 112),
        }
    }

    /// The CIDR of all pods, and its length.
    pub(crate) fn pods(&self) -> (IpAddr, u32) {
        match self.version {
            IpVersion::V4 => ([10, 244, 0, 0].into(), 16),
            IpVersion::V6 => ([0xfd44, 0, 0, 0, 0, 0, 0, 0].into(), 48),
        }
    }

    /// The client with another port.
    pub(crate) fn client_port(&self, port: u16) -> SocketAddr {
        (self.client.ip(), port).into()
    }

    /// The backend's address with the service's port, as SCTP needs it.
    pub(crate) fn same_port(&self, target: Target) -> Target {
        Target { addr: (target.addr.ip(), self.service.port()).into(), ..target }
    }
}

/// The protocols whose ports are translated.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Runs `check` for every family and protocol, each on empty maps, with programs that have `flags`.
pub(crate) fn each_with(flags: u32, check: impl Fn(&mut Harness, Cast, Protocol) -> Result<()>) -> Result<()> {
    for version in IpVersion::BOTH {
        for protocol in PROTOCOLS {
            let cast = Cast::new(version)?;
            Harness::with_flags(flags, |harness| check(harness, cast, protocol))
                .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

/// Runs `check` for every family and protocol, each on empty maps.
pub(crate) fn each(check: impl Fn(&mut Harness, Cast, Protocol) -> Result<()>) -> Result<()> {
    each_with(0, check)
}

/// Runs `check` for every family, each on empty maps.
pub(crate) fn each_version(check: impl Fn(&mut Harness, Cast) -> Result<()>) -> Result<()> {
    for version in IpVersion::BOTH {
        let cast = Cast::new(version)?;
        Harness::with(|harness| check(harness, cast)).with_context(|| version.to_string())?;
    }
    Ok(())
}

/// What becomes of `frame`, which must meet with `action`.
pub(crate) fn meets(harness: &Harness, hook: Hook, frame: &[u8], action: Action) -> Result<Vec<u8>> {
    let outcome = harness.run(hook, frame)?;
    ensure!(
        outcome.action == action,
        "{hook:?}: {:?}, expected {action:?}; drops {:?}",
        outcome.action,
        harness.drops()?
    );
    Ok(outcome.frame)
}

/// The packet that leaves `hook`, which must let it pass.
pub(crate) fn passes(harness: &Harness, hook: Hook, packet: &Packet) -> Result<Packet> {
    let frame = meets(harness, hook, &packet.frame()?, Action::Pass)?;
    Parsed::from_frame(&frame)?.transport().with_context(|| format!("{hook:?}"))
}

/// The packet must not get beyond `hook`.
pub(crate) fn drops(harness: &Harness, hook: Hook, packet: &Packet) -> Result<()> {
    meets(harness, hook, &packet.frame()?, Action::Drop).map(drop)
}

/// The ICMP message in a frame, with every checksum checked.
pub(crate) fn icmp(frame: &[u8]) -> Result<Icmp> {
    match Parsed::from_frame(frame)? {
        Parsed::Icmp(icmp) => Ok(icmp),
        other @ Parsed::Transport(_) => bail!("no ICMP message: {other:?}"),
    }
}

/// The packet's sender must be told at once, as by a host without a listener: RST, or port unreachable.
pub(crate) fn refuses(harness: &Harness, hook: Hook, packet: &Packet) -> Result<()> {
    let frame = meets(harness, hook, &packet.frame()?, Action::Redirect)?;
    if packet.protocol == Protocol::Tcp {
        let reset = Parsed::from_frame(&frame)?.transport()?;
        ensure!((reset.src, reset.dst) == (packet.dst, packet.src), "{reset:?}");
        ensure!(reset.flags.0 & 0x04 != 0, "{reset:?}");
        return Ok(());
    }
    let icmp = icmp(&frame)?;
    ensure!(icmp.refuses(packet.protocol) && (icmp.src, icmp.dst) == (packet.dst.ip(), packet.src.ip()), "{icmp:?}");
    let sent = &packet.frame()?[14..];
    // Without the payload: the length in the quoted header is the original one.
    ensure!(
        icmp.about.len() >= 28 && icmp.about == sent[..icmp.about.len()],
        "the client does not recognise its packet"
    );
    Ok(())
}
