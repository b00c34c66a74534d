//! Ways around the host's stack: where a flow's packets go next, and the interfaces that such ways may use.

use core::mem::size_of;

use crate::{addr::Addr, clock::Ticks, pod};

/// How a packet is handed on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// To the stack: there is no way around it.
    Stack = 0,
    /// Out of the interface, as the stack would have sent it.
    Transmit = 1,
    /// To the other end of the interface, a veth: into the pod, without a turn through the queue between both ends.
    Peer = 2,
}

impl Exit {
    /// The name as tables show it.
    #[must_use]
    pub const fn name(number: u32) -> &'static str {
        match number {
            1 => "transmit",
            2 => "peer",
            _ => "stack",
        }
    }
}

/// Where the packets of one direction of a flow go next, as the FIB said in the tick `checked`.
///
/// Part of a flow's entry, so that the way costs no lookup of its own. Written without a lock: it is looked up again
/// within a tick (2^30 ns), and two processors that do so at once find the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Link-layer addresses of a frame to the next hop, destination first, as words as they lie in memory.
    pub ethernet_addresses: [u32; 3],
    /// Index of the interface that the packets leave through.
    pub interface: u32,
    /// Index of the interface that they come in by; what comes in by another one may have a forged source.
    pub ingress: u32,
    /// The tick in which the way was looked up.
    pub checked: u32,
    /// Bytes that a packet may have on this way, from the network header on.
    pub mtu: u32,
    /// An [`Exit`].
    pub exit: u32,
}

impl Way {
    /// No way looked up yet.
    pub const UNKNOWN: Self =
        Self { ethernet_addresses: [0; 3], interface: 0, ingress: 0, checked: 0, mtu: 0, exit: Exit::Stack as u32 };
}

/// Value of the per-CPU arrays `ways4` and `ways6`: the way of packets that nobody translates, from one address to another.
///
/// Indexed by a hash of both addresses. Another pair takes the place over, and the kernel's FIB says the same again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairWay<A> {
    /// The sender.
    pub src: A,
    /// The receiver.
    pub dst: A,
    /// Where packets between them go next.
    pub way: Way,
}

impl<A: Addr> PairWay<A> {
    /// Whether this is the way from `src` to `dst` of packets that come in by the interface `ingress`, looked up in the tick `now`.
    #[inline(always)]
    pub fn is_of(&self, src: &A, dst: &A, ingress: u32, now: Ticks) -> bool {
        self.way.checked == now.0 && self.way.ingress == ingress && self.src == *src && self.dst == *dst
    }

    /// Makes this the place of the way from `src` to `dst`, which is the stack for now.
    #[inline(always)]
    pub fn take(&mut self, src: &A, dst: &A, ingress: u32, now: Ticks) {
        self.src = *src;
        self.dst = *dst;
        self.way.exit = Exit::Stack as u32;
        self.way.ingress = ingress;
        self.way.checked = now.0;
    }
}

/// Value of `devices`: an interface between which packets may go around the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Index of the interface that routes name for what is behind this one: its bridge's, or its own.
    pub routed_as: u32,
    /// Bits of `Device::*`.
    pub flags: u32,
}

impl Device {
    /// Packets may be sent out of it.
    pub const TRANSMIT: u32 = 1 << 0;
    /// Packets may be handed to its other end.
    pub const PEER: u32 = 1 << 1;
    /// A bridge: packets come in by its ports.
    pub const BRIDGE: u32 = 1 << 2;
}

const _: () = assert!(size_of::<Way>() == 12 + 5 * 4 && size_of::<Device>() == 8);
const _: () = assert!(size_of::<PairWay<[u32; 1]>>() == 8 + 32 && size_of::<PairWay<[u32; 4]>>() == 32 + 32);

pod!(Way, Device, PairWay<[u32; 1]>, PairWay<[u32; 4]>);
