//! Frontends, slots and backends: what clients send to and what answers.

use core::mem::size_of;

use crate::{
    addr::{Addr, BePort},
    pod,
};

/// What an address in a [`FrontendKey`] stands for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The address itself: a ClusterIP, external IP or load-balancer IP.
    Address = 0,
    /// Every address in the map of local addresses that takes NodePort traffic; the key's address is zero.
    ///
    /// One entry serves all of the node's addresses, so that an address that comes or goes is one map operation.
    NodePort = 1,
    /// Every port and protocol of a cluster IP that has no frontend of its own: such packets are rejected. The key's port
    /// and protocol are zero, and the value's slot ranges are empty.
    OtherPorts = 2,
}

/// Key of `frontends4` and `frontends6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<A> {
    /// The address clients send to; zero with [`Scope::NodePort`].
    pub addr: A,
    /// The port clients send to.
    pub port: BePort,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Scope`].
    pub scope: u8,
}

/// A run of entries in the array `slots`; a backend is chosen as `slots[first + random % count]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotRange {
    /// Index of the first slot.
    pub first: u32,
    /// Number of slots; zero means that nothing can answer.
    pub count: u32,
}

/// Which field of a Service a frontend comes from; for people and for rules that apply to one kind only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`
    ClusterIp = 1,
    /// `spec.ports[].nodePort`
    NodePort = 2,
    /// `spec.externalIPs`
    ExternalIp = 3,
    /// `status.loadBalancer.ingress[].ip`
    LoadBalancer = 4,
}

impl FrontendKind {
    /// Decodes a map value's field.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::NodePort),
            3 => Some(Self::ExternalIp),
            4 => Some(Self::LoadBalancer),
            _ => None,
        }
    }

    /// The name as tables show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Id of no service port: of flows that are to none.
pub const NO_SERVICE: u32 = 0;

/// Value of `frontends4` and `frontends6`: everything needed to choose a backend with one more lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// The service port's id; key of `service_names`. Never zero.
    pub service: u32,
    /// Backends for clients on this node: pods and the node's own processes.
    pub inside: SlotRange,
    /// Backends for clients that reach the node from outside.
    pub outside: SlotRange,
    /// `ClientIP` affinity in seconds; zero when there is none.
    pub affinity_seconds: u32,
    /// A [`FrontendKind`].
    pub kind: u8,
    /// Bits of `Frontend::*`.
    pub flags: u8,
    /// Zero.
    pub pad: u16,
}

impl Frontend {
    /// An empty `inside` range drops instead of rejecting: endpoints exist, but traffic policy Local admits none of them.
    pub const DROP_INSIDE: u8 = 1 << 0;
    /// The same for `outside`.
    pub const DROP_OUTSIDE: u8 = 1 << 1;
    /// The traffic policy that holds for this kind of frontend is Local. For people: the programs do not read it.
    pub const LOCAL_POLICY: u8 = 1 << 2;
    /// Clients must be in one of the service's prefixes in `source_ranges4` or `source_ranges6`.
    pub const SOURCE_RANGES: u8 = 1 << 3;
    /// The `inside` range holds the local set ([`Backend::IN_LOCAL_SET`]) rather than the cluster set.
    pub const INSIDE_IS_LOCAL: u8 = 1 << 4;
    /// The same for `outside`.
    pub const OUTSIDE_IS_LOCAL: u8 = 1 << 5;
}

/// Value of the arrays `backends4` and `backends6`, indexed by backend id.
///
/// A backend belongs to one service port: the same endpoint behind two services is two backends, so that its removal from
/// one of them ends that service's flows only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backend<A> {
    /// The endpoint's address.
    pub addr: A,
    /// The endpoint's port.
    pub port: BePort,
    /// IANA protocol number.
    pub protocol: u8,
    /// Bits of `Backend::*`.
    pub flags: u8,
    /// The service port it belongs to.
    pub service: u32,
    /// Odd while the backend exists, even when the id is free; grows by one at each change between the two, so a flow
    /// that remembers the number knows whether its backend is still the same one. Never reset while the map lives.
    pub generation: u32,
}

impl<A> Backend<A> {
    /// The endpoint runs on this node.
    pub const LOCAL: u8 = 1 << 0;
    /// The endpoint is terminating: flows may finish, new ones come only when nothing is ready.
    pub const TERMINATING: u8 = 1 << 1;
    /// Clients may be sent here under traffic policy Cluster; affinity to a backend that has left the set is void.
    pub const IN_CLUSTER_SET: u8 = 1 << 2;
    /// The same under traffic policy Local.
    pub const IN_LOCAL_SET: u8 = 1 << 3;

    /// Whether the id is in use.
    #[inline(always)]
    pub const fn exists(&self) -> bool {
        self.generation & 1 == 1
    }

    /// Whether the endpoint runs on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

/// Value of `service_names`, keyed by service id: `namespace/name:port` in UTF-8, padded with zero bytes.
///
/// Ids stay stable over restarts because they are read back from here, and the command line can name a service without
/// the agent. Three DNS labels of 63 bytes and two separators always fit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// The text.
    pub bytes: [u8; 192],
}

impl ServiceName {
    /// Stores `text`; `None` when it is longer than the field.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; 192];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes })
    }

    /// The text; empty when the bytes are not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(self.bytes.len());
        core::str::from_utf8(&self.bytes[..end]).unwrap_or_default()
    }
}

/// Key of the prefix tries `source_ranges4` and `source_ranges6`, behind the prefix length: a prefix of a service.
///
/// The prefix length counts the 32 bits of the service too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange<A> {
    /// The service port's id.
    pub service: u32,
    /// The client's address, or the prefix with zeroes behind it.
    pub addr: A,
}

const _: () = {
    assert!(size_of::<SourceRange<[u32; 1]>>() == 4 + 4);
    assert!(size_of::<SourceRange<[u32; 4]>>() == 4 + 16);
    assert!(size_of::<FrontendKey<[u32; 1]>>() == 4 + 2 + 1 + 1);
    assert!(size_of::<FrontendKey<[u32; 4]>>() == 16 + 2 + 1 + 1);
    assert!(size_of::<Frontend>() == 4 + 8 + 8 + 4 + 1 + 1 + 2);
    assert!(size_of::<Backend<[u32; 1]>>() == 4 + 2 + 1 + 1 + 4 + 4);
    assert!(size_of::<Backend<[u32; 4]>>() == 16 + 2 + 1 + 1 + 4 + 4);
};

impl<A: Addr> Backend<A> {
    /// A free id, as a new array holds it.
    pub const FREE: Self = Self { addr: A::ZERO, port: BePort(0), protocol: 0, flags: 0, service: 0, generation: 0 };
}

pod!(FrontendKey<[u32; 1]>, FrontendKey<[u32; 4]>, Frontend, Backend<[u32; 1]>, Backend<[u32; 4]>, ServiceName);
pod!(SourceRange<[u32; 1]>, SourceRange<[u32; 4]>);
