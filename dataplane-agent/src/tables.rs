//! Desired map contents, computed from the model; here the address family is a matter of values, not of types.

pub mod ids;
pub mod layout;
pub mod node;
pub mod packed;
pub mod pools;
pub mod service;
pub mod slots;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use dataplane_common::{
    Backend, Device, Frontend, Protocol, Scope, SlotRange,
    map::{cidr, local_addr},
};
use ipnetwork::IpNetwork;

/// The rows of every map that the agent writes, or of the part of them that belongs to one service.
///
/// The rows of different services are disjoint, so the parts can be computed, compared and changed on their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `frontends4` and `frontends6`.
    pub frontends: BTreeMap<FrontendAddr, Frontend>,
    /// `slots`, as far as a frontend counts them.
    pub slots: BTreeMap<u32, BackendId>,
    /// `backends4` and `backends6`: those that exist.
    pub backends: BTreeMap<BackendId, BackendRow>,
    /// `service_names`
    pub service_names: BTreeMap<u32, String>,
    /// `local_addrs4` and `local_addrs6`: bits of [`local_addr`].
    pub local_addrs: BTreeMap<IpAddr, u32>,
    /// `snat_addrs4` and `snat_addrs6`.
    pub snat_addrs: BTreeMap<SnatKey, IpAddr>,
    /// `source_ranges4` and `source_ranges6`.
    pub source_ranges: BTreeSet<ClientRange>,
    /// `cidrs4` and `cidrs6`: bits of [`cidr`].
    pub cidrs: BTreeMap<IpNetwork, u32>,
    /// `devices`, by interface index.
    pub devices: BTreeMap<u32, Device>,
}

/// An address family as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `addr`.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family's unspecified address.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// What clients send to: key of `frontends4` or `frontends6`, by the family of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// The address; unspecified with [`Scope::NodePort`].
    pub addr: IpAddr,
    /// The port; zero with [`Scope::OtherPorts`].
    pub port: u16,
    /// The transport protocol; all of them with [`Scope::OtherPorts`], and only there.
    pub protocol: Option<Protocol>,
    /// What the address stands for.
    pub scope: Scope,
}

impl FrontendAddr {
    /// The ports of the cluster IP `addr` that it does not have.
    pub const fn other_ports(addr: IpAddr) -> Self {
        Self { addr, port: 0, protocol: None, scope: Scope::OtherPorts }
    }

    /// Whether clients get an answer here; else it only says that they do not.
    pub const fn is_served(&self) -> bool {
        !matches!(self.scope, Scope::OtherPorts)
    }

    /// The protocol's name.
    pub const fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Some(protocol) => protocol.name(),
            None => "any",
        }
    }
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope {
            Scope::OtherPorts => write!(f, "{} other ports", self.addr),
            Scope::Address | Scope::NodePort => {
                write!(f, "{}/{}", SocketAddr::new(self.addr, self.port), self.protocol_name())
            }
        }
    }
}

/// Clients that a service port's load-balancer addresses admit: key of `source_ranges4` or `source_ranges6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientRange {
    /// The service port's id.
    pub service: u32,
    /// The clients' addresses; behind the prefix there are zeroes.
    pub range: IpNetwork,
}

/// `range` with zeroes behind the prefix, so that equal ranges are equal.
pub fn canonical(range: IpNetwork) -> IpNetwork {
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

/// Index in `backends4` or `backends6`; zero is never used, so that a zeroed slot names no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId {
    /// Which of the two arrays.
    pub family: IpFamily,
    /// The index.
    pub number: u32,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            IpFamily::V4 => 4,
            IpFamily::V6 => 6,
        };
        write!(f, "{family}.{}", self.number)
    }
}

/// An endpoint as the datapath uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendRow {
    /// Address and port.
    pub addr: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Bits of [`Backend`].
    pub flags: u8,
    /// The service port it belongs to.
    pub service: u32,
    /// Odd while it exists.
    pub generation: u32,
}

impl BackendRow {
    /// The endpoint runs on this node.
    pub const LOCAL: u8 = Backend::<[u32; 1]>::LOCAL;
    /// The endpoint is terminating.
    pub const TERMINATING: u8 = Backend::<[u32; 1]>::TERMINATING;
    /// Clients may be sent here under traffic policy Cluster.
    pub const IN_CLUSTER_SET: u8 = Backend::<[u32; 1]>::IN_CLUSTER_SET;
    /// Clients may be sent here under traffic policy Local.
    pub const IN_LOCAL_SET: u8 = Backend::<[u32; 1]>::IN_LOCAL_SET;

    /// Whether the id is in use.
    pub const fn exists(&self) -> bool {
        self.generation & 1 == 1
    }
}

/// Key of `snat_addrs4` or `snat_addrs6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatKey {
    /// Index of the egress interface.
    pub interface: u32,
    /// Which of the two maps.
    pub family: IpFamily,
}

/// The bits of [`local_addr`] in words.
pub fn local_addr_words(bits: u32) -> String {
    words(bits, &[(local_addr::NODE_PORT, "node-port"), (local_addr::LOOPBACK, "loopback")])
}

/// The bits of [`cidr`] in words.
pub fn cidr_words(bits: u32) -> String {
    words(bits, &[(cidr::SERVICE, "services"), (cidr::POD, "pods"), (cidr::SERVICES_KNOWN, "services-known")])
}

/// The bits of [`Device`] in words.
pub fn device_words(bits: u32) -> String {
    words(bits, &[(Device::TRANSMIT, "out"), (Device::PEER, "peer"), (Device::BRIDGE, "bridge")])
}

fn words(bits: u32, names: &[(u32, &str)]) -> String {
    let set: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    set.join(",")
}

impl Tables {
    /// Adds the rows of `other`.
    pub fn extend(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.slots.extend(other.slots);
        self.backends.extend(other.backends);
        self.service_names.extend(other.service_names);
        self.local_addrs.extend(other.local_addrs);
        self.snat_addrs.extend(other.snat_addrs);
        self.source_ranges.extend(other.source_ranges);
        self.cidrs.extend(other.cidrs);
        self.devices.extend(other.devices);
    }

    /// The rows of each service port, by its id; the node's own rows are left out.
    pub fn split(&self) -> BTreeMap<u32, Self> {
        let mut parts = BTreeMap::<u32, Self>::new();
        for (id, name) in &self.service_names {
            parts.entry(*id).or_default().service_names.insert(*id, name.clone());
        }
        for (id, row) in &self.backends {
            parts.entry(row.service).or_default().backends.insert(*id, *row);
        }
        for (addr, frontend) in &self.frontends {
            let part = parts.entry(frontend.service).or_default();
            part.frontends.insert(*addr, *frontend);
            let counted = counted_slots(frontend);
            part.slots.extend(counted.filter_map(|index| self.slots.get(&index).map(|backend| (index, *backend))));
        }
        for range in &self.source_ranges {
            parts.entry(range.service).or_default().source_ranges.insert(*range);
        }
        parts
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Forgets the slots that no frontend counts.
    pub fn drop_uncounted_slots(&mut self) {
        let counted: BTreeSet<u32> = self.frontends.values().flat_map(counted_slots).collect();
        self.slots.retain(|index, _| counted.contains(index));
    }
}

/// The slots that `frontend` counts, those of both ranges one after the other.
pub fn counted_slots(frontend: &Frontend) -> impl Iterator<Item = u32> + use<> {
    counted_ranges(frontend).flat_map(|range| range.first..range.first.saturating_add(range.count))
}

/// The ranges of `frontend` that count any slot.
pub fn counted_ranges(frontend: &Frontend) -> impl Iterator<Item = SlotRange> + use<> {
    [frontend.inside, frontend.outside].into_iter().filter(|range| range.count > 0)
}
