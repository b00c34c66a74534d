//! What has been seen of a flow, and how long it lives after that.

use crate::{
    config::{Timeout, Timeouts},
    conntrack::Direction,
    protocol::Protocol,
};

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
    /// The flow began with a connection's first packet. No timeout depends on it.
    pub const OPENED: Self = Self(1 << 4);

    const BOTH_FIN: u8 = Self::ORIGINAL_FIN.0 | Self::REPLY_FIN.0;

    /// The state of a flow that begins with a packet with the TCP flags `tcp`.
    #[must_use]
    #[inline(always)]
    pub const fn of_first(tcp: TcpFlags) -> Self {
        const { assert!(Self::OPENED.0 == TcpFlags::ACK.0 && Self::OPENED.0 == TcpFlags::SYN.0 << 3) };
        // Arithmetic, as in `after`: SYN without ACK.
        Self((tcp.0 << 3) & !tcp.0 & Self::OPENED.0)
    }

    /// Whether the connection has been asked for and not been answered yet: an answer that neither accepts nor refuses it is not its
    /// own.
    #[must_use]
    #[inline(always)]
    pub const fn is_unanswered(self) -> bool {
        self.0 & (Self::OPENED.0 | Self::REPLIED.0) == Self::OPENED.0
    }

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

/// States that have a timeout: one per combination of the four lower bits of [`FlowState`].
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
}
