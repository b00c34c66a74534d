//! Load-time constants of the datapath: one read-only global, so that the verifier prunes what is switched off.

use core::mem::size_of;

use crate::{addr::BePort, clock::Ticks, pod};

/// A conntrack timeout; the discriminant is its index in [`Timeouts`].
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// TCP before the first answer.
    TcpOpening = 0,
    /// TCP after it.
    TcpEstablished = 1,
    /// TCP after a FIN of one side.
    TcpClosing = 2,
    /// TCP after a RST or both FINs.
    TcpClosed = 3,
    /// UDP and others before the first answer.
    Datagram = 4,
    /// UDP and others after it.
    DatagramStream = 5,
}

/// Every conntrack timeout in ticks, indexed by [`Timeout`]; the places that it leaves are never read.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts(pub [u32; Self::LEN]);

impl Timeouts {
    /// Places: a power of two, so that a mask keeps every index among them.
    pub const LEN: usize = 8;

    /// kube-proxy's defaults where it has them (`tcpEstablishedTimeout` 24 h, `tcpCloseWaitTimeout` 1 h), nf_conntrack's
    /// elsewhere; closed connections are kept just long enough for stray segments.
    pub const DEFAULT: Self = Self([
        Ticks::from_secs(120).0,
        Ticks::from_secs(24 * 3600).0,
        Ticks::from_secs(3600).0,
        Ticks::from_secs(10).0,
        Ticks::from_secs(30).0,
        Ticks::from_secs(120).0,
        0,
        0,
    ]);
}

/// What the programs know about their node from the moment they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Cookie of the node's network namespace; sockets elsewhere belong to pods.
    pub host_netns_cookie: u64,
    /// Conntrack timeouts.
    pub timeouts: Timeouts,
    /// Source address of IPv4 hairpins.
    pub hairpin4: [u32; 1],
    /// Source address of IPv6 hairpins.
    pub hairpin6: [u32; 4],
    /// First source port that SNAT may take.
    pub snat_port_first: u16,
    /// Number of ports that SNAT may take; a power of two, so that a candidate is one mask away.
    pub snat_port_count: u16,
    /// Bits of `NodeConfig::*`.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

impl NodeConfig {
    /// The global's name in the BPF object.
    pub const SYMBOL: &'static str = "NODE_CONFIG";
    /// Sockets in pods are translated at connect time too.
    pub const SOCKETS_OF_PODS: u32 = 1 << 0;
    /// Map operations are counted in `map_ops`; for measurements only.
    pub const COUNT_MAP_OPS: u32 = 1 << 1;
    /// The kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace` (since 6.16), which keeps the checksum that a device computed
    /// over a whole IPv6 packet right; without it such packets are summed again in software.
    pub const IPV6_CHECKSUM_FLAG: u32 = 1 << 2;
    /// Every request to a cluster IP is masqueraded (kube-proxy's `masqueradeAll`).
    pub const MASQUERADE_ALL: u32 = 1 << 3;
    /// Requests to a cluster IP from outside are masqueraded unless `cidrs4` or `cidrs6` say that a pod sent them.
    pub const MASQUERADE_OUTSIDE: u32 = 1 << 4;

    /// Packets of flows go around the stack where `devices` allows it.
    pub const HOST_BYPASS: u32 = 1 << 6;
    /// Backends' nodes answer IPv4 clients directly (direct server return), here and on every other node.
    pub const DIRECT_RETURN: u32 = 1 << 7;

    /// 169.254.42.1: link-local, so no network routes it, and a pod answers it through its default route.
    pub const DEFAULT_HAIRPIN4: [u32; 1] = [u32::from_ne_bytes([169, 254, 42, 1])];
    /// fd73:6c75:6963:65::1, a unique local address (RFC 4193): `fe80::/10` would be resolved on the pod's own link.
    pub const DEFAULT_HAIRPIN6: [u32; 4] = [
        u32::from_ne_bytes([0xfd, 0x73, 0x6c, 0x75]),
        u32::from_ne_bytes([0x69, 0x63, 0x00, 0x65]),
        0,
        u32::from_ne_bytes([0, 0, 0, 1]),
    ];

    /// Defaults for a node whose network namespace has no known cookie.
    pub const DEFAULT: Self = Self {
        host_netns_cookie: 0,
        timeouts: Timeouts::DEFAULT,
        hairpin4: Self::DEFAULT_HAIRPIN4,
        hairpin6: Self::DEFAULT_HAIRPIN6,
        // Below Kubernetes' NodePorts (30000) and Linux' ephemeral ports (32768): never a tuple of the node's own sockets.
        snat_port_first: 12_288,
        snat_port_count: 16_384,
        flags: 0,
        pad: 0,
    };

    /// Source port number `index` (any number) of the SNAT range.
    #[must_use]
    #[inline(always)]
    pub const fn snat_port(first: u16, count: u16, index: u32) -> BePort {
        BePort::new(first.wrapping_add(index as u16 & count.wrapping_sub(1)))
    }
}

const _: () = assert!(size_of::<NodeConfig>() == 8 + Timeouts::LEN * 4 + 4 + 16 + 2 + 2 + 4 + 4);

pod!(NodeConfig);
