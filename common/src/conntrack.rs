//! Flows: one entry per direction, each holding its rewrite inline.

use core::mem::size_of;

use crate::{
    addr::BePort,
    config::{Timeout, Timeouts},
    pod,
    protocol::Protocol,
    way::Way,
};

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
    /// To the node's own socket, as if received on the interface that leads to the packet's source: strict reverse-path
    /// filtering would drop a frontend's address that comes in from a pod.
    Receive = 3,
    /// As [`Next::Route`], but the client keeps its address, and the backend's node answers it directly (direct server return). Its
    /// answers usually do not pass here.
    Direct = 4,
}

/// What has been seen of a flow, as bits that only ever get set.
///
/// Both entries of a flow hold the same bits: a packet that sets a new one updates the other direction's entry too, all
/// other packets touch only their own.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowState(pub u8);

impl FlowState {
    /// A packet came back.
    pub const REPLIED: Self = Self(1 << 0);
    /// The client sent FIN.
    pub const ORIGINAL_FIN: Self = Self(1 << 1);
    /// The backend sent FIN.
    pub const REPLY_FIN: Self = Self(1 << 2);
    /// Either side sent RST.
    pub const RESET: Self = Self(1 << 3);

    const BOTH_FIN: u8 = Self::ORIGINAL_FIN.0 | Self::REPLY_FIN.0;

    /// The state after a packet in `direction` with the TCP flags `tcp` (empty for other protocols).
    ///
    /// Arithmetic, for each branch here would double the ways that the verifier walks from there on.
    #[must_use]
    #[inline(always)]
    pub const fn after(self, direction: Direction, tcp: TcpFlags) -> Self {
        const {
            assert!(Self::REPLIED.0 == Direction::Reply as u8);
            assert!(Self::ORIGINAL_FIN.0 == TcpFlags::FIN.0 << 1 && Self::REPLY_FIN.0 == TcpFlags::FIN.0 << 2);
            assert!(Self::RESET.0 == TcpFlags::RST.0 << 1);
        }
        let reply = direction as u8;
        let fin = (tcp.0 & TcpFlags::FIN.0) << (1 + reply);
        Self(self.0 | reply | fin | (tcp.0 & TcpFlags::RST.0) << 1)
    }

    /// Whether a side has said that it is done: a SYN of the client then starts another connection.
    #[must_use]
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.0 & (Self::BOTH_FIN | Self::RESET.0) != 0
    }

    /// Whether nothing more can come of the connection, so that a new SYN may start another.
    #[must_use]
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        self.0 & Self::RESET.0 != 0 || self.0 & Self::BOTH_FIN == Self::BOTH_FIN
    }

    /// Which timeout holds for a flow in this state.
    #[must_use]
    #[inline(always)]
    pub const fn timeout(self, protocol: u8) -> Timeout {
        let replied = self.0 & Self::REPLIED.0 != 0;
        if protocol == Protocol::Tcp as u8 {
            if self.is_closed() {
                Timeout::TcpClosed
            } else if self.0 & Self::BOTH_FIN != 0 {
                Timeout::TcpClosing
            } else if replied {
                Timeout::TcpEstablished
            } else {
                Timeout::TcpOpening
            }
        } else if replied {
            Timeout::DatagramStream
        } else {
            Timeout::Datagram
        }
    }

    /// The place of [`Self::timeout`] in [`Timeouts`], looked up in a constant: again without a branch
    /// per question.
    #[must_use]
    #[inline(always)]
    pub const fn timeout_index(self, protocol: u8) -> usize {
        const TCP: u64 = timeout_indices(Protocol::Tcp, false);
        const OTHERS: u64 = timeout_indices(Protocol::Udp, false);
        self.index_in(if protocol == Protocol::Tcp as u8 { TCP } else { OTHERS })
    }

    /// The same for [`Self::timeout_unanswered`].
    #[must_use]
    #[inline(always)]
    pub const fn timeout_index_unanswered(self, protocol: u8) -> usize {
        const TCP: u64 = timeout_indices(Protocol::Tcp, true);
        const OTHERS: u64 = timeout_indices(Protocol::Udp, true);
        self.index_in(if protocol == Protocol::Tcp as u8 { TCP } else { OTHERS })
    }

    #[inline(always)]
    const fn index_in(self, indices: u64) -> usize {
        (indices >> (4 * (self.0 % STATES))) as usize % Timeouts::LEN
    }

    /// The timeout where the backend's answers are not seen: from the client's FIN on nothing tells whether the other side is done,
    /// too. Both are then given the time that an opening connection has, as nf_conntrack gives about as much.
    #[must_use]
    pub const fn timeout_unanswered(self, protocol: u8) -> Timeout {
        match self.timeout(protocol) {
            Timeout::TcpClosing => Timeout::TcpOpening,
            timeout => timeout,
        }
    }

    /// The state's name as tables show it.
    #[must_use]
    pub const fn name(self, protocol: u8) -> &'static str {
        let replied = self.0 & Self::REPLIED.0 != 0;
        if protocol != Protocol::Tcp as u8 {
            return if replied { "stream" } else { "unreplied" };
        }
        if self.is_closed() {
            "closed"
        } else if self.0 & Self::BOTH_FIN != 0 {
            "closing"
        } else if replied {
            "established"
        } else {
            "opening"
        }
    }
}

/// States of a flow: one per combination of the four bits of [`FlowState`].
const STATES: u8 = 16;

/// The index of the timeout of each state of `protocol`, four bits each.
const fn timeout_indices(protocol: Protocol, unanswered: bool) -> u64 {
    let (mut indices, mut state) = (0, 0);
    while state < STATES {
        let (flow, protocol) = (FlowState(state), protocol as u8);
        let timeout = if unanswered { flow.timeout_unanswered(protocol) } else { flow.timeout(protocol) };
        indices |= (timeout as u64) << (4 * state);
        state += 1;
    }
    indices
}

/// The flags of a TCP header (RFC 9293, byte 13).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether this is a connection's first packet: SYN without ACK.
    #[must_use]
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0) == Self::SYN.0
    }

    /// Whether this is any packet of a connection but its first, resets out of nowhere aside. Other protocols have no flags.
    #[must_use]
    #[inline(always)]
    pub const fn continues(self) -> bool {
        self.0 & Self::ACK.0 != 0
    }

    /// Whether this is the answer to a connection's first packet: SYN with ACK.
    #[must_use]
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0) == Self::SYN.0 | Self::ACK.0
    }
}

/// Value of `conntrack4` and `conntrack6`.
///
/// The rewrite is the whole translated tuple. A translated packet's reverse is the key of the flow's other entry, so no
/// entry needs to name its peer.
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

    const FIN_ACK: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);

    #[track_caller]
    fn check(packets: &[(Direction, TcpFlags)], expected: &str) {
        let state =
            packets.iter().fold(FlowState::default(), |state, (direction, flags)| state.after(*direction, *flags));
        assert_eq!(state.name(6), expected);
    }

    #[test]
    fn a_connection_opens_lives_and_closes() {
        use Direction::{Original, Reply};
        let syn = TcpFlags::SYN;
        let ack = TcpFlags::ACK;
        check(&[(Original, syn)], "opening");
        check(&[(Original, syn), (Reply, ack)], "established");
        check(&[(Original, syn), (Reply, ack), (Original, FIN_ACK)], "closing");
        check(&[(Original, syn), (Reply, ack), (Original, FIN_ACK), (Reply, ack)], "closing");
        check(&[(Original, syn), (Reply, ack), (Original, FIN_ACK), (Reply, FIN_ACK)], "closed");
        check(&[(Original, syn), (Reply, TcpFlags::RST)], "closed");
    }

    #[test]
    fn the_place_of_a_timeout_is_that_of_the_rule() {
        for (state, protocol) in (0..STATES).flat_map(|state| [6, 17, 132].map(|protocol| (FlowState(state), protocol)))
        {
            assert_eq!(state.timeout_index(protocol), state.timeout(protocol) as usize, "{state:?} of {protocol}");
            let unanswered = state.timeout_unanswered(protocol) as usize;
            assert_eq!(state.timeout_index_unanswered(protocol), unanswered, "{state:?} of {protocol}");
        }
    }

    #[test]
    fn a_packet_sets_the_bits_of_its_flags_and_direction() {
        for (direction, replied, fin) in [
            (Direction::Original, FlowState::default(), FlowState::ORIGINAL_FIN),
            (Direction::Reply, FlowState::REPLIED, FlowState::REPLY_FIN),
        ] {
            for flags in 0..=u8::MAX {
                let mut expected = replied.0;
                expected |= if flags & TcpFlags::FIN.0 == 0 { 0 } else { fin.0 };
                expected |= if flags & TcpFlags::RST.0 == 0 { 0 } else { FlowState::RESET.0 };
                assert_eq!(
                    FlowState::default().after(direction, TcpFlags(flags)).0,
                    expected,
                    "{direction:?} {flags:#x}"
                );
                assert_eq!(FlowState(0xf).after(direction, TcpFlags(flags)).0, 0xf);
            }
        }
    }

    #[test]
    fn only_a_lone_syn_opens() {
        assert!(TcpFlags::SYN.opens());
        assert!(!TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0).opens());
        assert!(!TcpFlags::ACK.opens());
    }

    #[test]
    fn half_closed_connections_whose_answers_are_not_seen_end_sooner() {
        let closing = FlowState(FlowState::REPLIED.0 | FlowState::ORIGINAL_FIN.0);
        assert_eq!(closing.timeout(6), Timeout::TcpClosing);
        assert_eq!(closing.timeout_unanswered(6), Timeout::TcpOpening);
        assert_eq!(FlowState::REPLIED.timeout_unanswered(6), Timeout::TcpEstablished);
        assert_eq!(FlowState::REPLIED.timeout_unanswered(17), Timeout::DatagramStream);
    }

    #[test]
    fn the_reverse_of_the_reverse_is_the_key() {
        let key = FlowKey::new([1_u32], [2], BePort::new(3), BePort::new(4), 6);
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }
}
