//! Flows: one entry per direction, each holding its rewrite inline.

use core::mem::size_of;

use crate::{addr::BePort, flow_state::FlowState, pod, way::Way};

/// Key of `conntrack4` and `conntrack6`: a packet's addresses and ports as the hook sees them, before translation.
///
/// It has no direction: the entries of a flow's two directions have different keys because translation changes an address
/// or a port, and one lookup answers whatever a packet is.
///
/// Aligned to eight bytes, which costs nothing here: on a BPF stack the compiler then joins words without a misaligned access.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: BePort,
    /// Destination port.
    pub dst_port: BePort,
    /// IANA protocol number.
    pub protocol: u8,
    // Two fields: three bytes in one would be cleared by a call of `memset`.
    pad: u8,
    wide_pad: u16,
}

impl<A: Copy> FlowKey<A> {
    /// The key of a packet with these addresses and ports; `protocol` is its IANA number.
    #[must_use]
    #[inline(always)]
    pub const fn new(src: A, dst: A, src_port: BePort, dst_port: BePort, protocol: u8) -> Self {
        Self { src, dst, src_port, dst_port, protocol, pad: 0, wide_pad: 0 }
    }

    /// Becomes the tuple of packets in the other direction.
    #[inline(always)]
    pub fn reverse(&mut self) {
        core::mem::swap(&mut self.src, &mut self.dst);
        core::mem::swap(&mut self.src_port, &mut self.dst_port);
    }

    /// The key of a packet that answers this one.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst, self.src, self.dst_port, self.src_port, self.protocol)
    }
}

/// The direction of a flow that an entry is for, as in nf_conntrack.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the client sent it.
    Original = 0,
    /// Answers.
    Reply = 1,
}

impl Direction {
    /// The direction that an entry's byte stands for.
    #[must_use]
    #[inline(always)]
    pub const fn of(byte: u8) -> Self {
        if byte & 1 == Self::Original as u8 { Self::Original } else { Self::Reply }
    }
}

/// On which side of the host's stack an entry's rewrite happens; on the other side the packet passes as it is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// At `from_pod` and `from_uplink`, before the stack.
    Ingress = 0,
    /// At `to_pod` and `to_uplink`, after it.
    Egress = 1,
}

impl Side {
    /// The side that an entry's byte stands for.
    #[must_use]
    #[inline(always)]
    pub const fn of(byte: u8) -> Self {
        if byte == Self::Egress as u8 { Self::Egress } else { Self::Ingress }
    }
}

/// Where a packet goes after its rewrite.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// On its way through the stack.
    Stack = 0,
    /// Out of the interface that a FIB lookup names: an own address as source would be a martian on the input path.
    Route = 1,
    /// Back out of the interface it came from: a pod talks to itself.
    Bounce = 2,
    /// Into the stack, as if received on the interface that leads to the packet's source: strict reverse-path filtering would
    /// drop a frontend's address that comes in from a pod, and a client's that comes in from another node.
    Receive = 3,
    /// As [`Next::Route`], but the client keeps its address, and the backend's node answers it directly (direct server return). Its
    /// answers usually do not pass here.
    Direct = 4,
    /// As [`Next::Stack`], and never around it: behind it is another entry for what is put right before it, or the rest of a translation.
    StackOnly = 5,
}

/// Value of `conntrack4` and `conntrack6`.
///
/// The rewrite is the whole translated tuple. A translated packet's reverse is the key of the flow's other entry, so no
/// entry needs to name its peer; [`Flow::peers`] has the exception.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Packets that matched this entry. Counted without a lock: two processors may lose one.
    pub packets: u64,
    /// Their bytes, from the network header on.
    pub bytes: u64,
    /// Source address after the rewrite.
    pub src: A,
    /// Destination address after the rewrite.
    pub dst: A,
    /// Source port after the rewrite.
    pub src_port: BePort,
    /// Destination port after the rewrite.
    pub dst_port: BePort,
    /// Id of the backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
    /// The tick after which this direction has been silent for too long.
    pub deadline: u32,
    /// A [`Direction`].
    pub direction: u8,
    /// A [`Side`].
    pub side: u8,
    /// A [`Next`].
    pub next: u8,
    /// What has been seen of the flow.
    pub state: FlowState,
    /// The way around the stack, where there is one.
    pub way: Way,
}

impl<A: Copy> Flow<A> {
    /// Whether this entry rewrites answers to what a packet with `key` became: it then belongs to the same flow.
    #[must_use]
    #[inline(always)]
    pub fn answers(&self, key: &FlowKey<A>) -> bool
    where
        A: PartialEq,
    {
        self.src == key.dst && self.dst == key.src && self.src_port == key.dst_port && self.dst_port == key.src_port
    }

    /// Whether this entry, found under [`Flow::peers`], belongs to the same flow as `other`, whose key is `key`.
    #[must_use]
    #[inline(always)]
    pub fn is_peer_of(&self, other: &Self, key: &FlowKey<A>) -> bool
    where
        A: PartialEq,
    {
        let replies = self.direction == Direction::Reply as u8;
        self.answers(key) || (replies && other.keeps_destination(key) && self.returns_to(key))
    }

    /// Whether packets with `key` keep their destination: another node has chosen the backend (direct server return).
    #[must_use]
    #[inline(always)]
    pub fn keeps_destination(&self, key: &FlowKey<A>) -> bool
    where
        A: PartialEq,
    {
        self.dst == key.dst && self.dst_port == key.dst_port
    }

    /// Whether this entry sends answers to whoever sends packets with `key`, from wherever.
    #[must_use]
    #[inline(always)]
    pub fn returns_to(&self, key: &FlowKey<A>) -> bool
    where
        A: PartialEq,
    {
        self.dst == key.src && self.dst_port == key.src_port
    }

    /// The keys that the flow's other entry may have: the reverse of what packets with `key` become, or, for answers that are
    /// given the address of a frontend on another node, the request's, which came with the backend's address already.
    #[must_use]
    #[inline(always)]
    pub const fn peers(&self, key: &FlowKey<A>) -> [FlowKey<A>; 2] {
        [self.translated(key.protocol).reversed(), self.announced_request(key)]
    }

    /// The second of [`Flow::peers`].
    #[must_use]
    #[inline(always)]
    pub const fn announced_request(&self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey::new(self.dst, key.src, self.dst_port, key.src_port, key.protocol)
    }

    /// The tuple a packet has after the rewrite.
    #[inline(always)]
    pub const fn translated(&self, protocol: u8) -> FlowKey<A> {
        FlowKey::new(self.src, self.dst, self.src_port, self.dst_port, protocol)
    }
}

const _: () = {
    assert!(size_of::<FlowKey<[u32; 1]>>() == 4 + 4 + 2 + 2 + 1 + 3);
    assert!(size_of::<FlowKey<[u32; 4]>>() == 16 + 16 + 2 + 2 + 1 + 3);
    assert!(size_of::<Flow<[u32; 1]>>() == 8 + 8 + 4 + 4 + 2 + 2 + 4 * 4 + 4 + 32);
    assert!(size_of::<Flow<[u32; 4]>>() == 8 + 8 + 16 + 16 + 2 + 2 + 4 * 4 + 4 + 32);
};

pod!(FlowKey<[u32; 1]>, FlowKey<[u32; 4]>, Flow<[u32; 1]>, Flow<[u32; 4]>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reverse_of_the_reverse_is_the_key() {
        let key = FlowKey::new([1_u32], [2], BePort::new(3), BePort::new(4), 6);
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }
}
