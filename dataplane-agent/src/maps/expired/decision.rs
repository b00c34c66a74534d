//! Whether an entry of an observed map is over: the same rules as the programs', which meet an entry only with a packet.

use dataplane_common::{FlowState, Protocol, Ticks, clock::TICK_SHIFT};

/// Fragments that belong together arrive within this time: RFC 8200 gives up after 60 seconds, Linux after 30.
const REASSEMBLY: Ticks = Ticks::from_secs(60);

/// Whether a flow of `protocol` ends with its backend. A TCP connection may be finished by a backend that is removed.
pub(super) const fn follows_its_backend(protocol: u8) -> bool {
    protocol != Protocol::Tcp as u8
}

/// Whether each direction of a flow goes when it is silent itself: nothing more comes of a closed connection, and its entries, most of
/// those that go, then need no look at each other.
pub(super) fn goes_alone(protocol: u8, state: FlowState) -> bool {
    protocol == Protocol::Tcp as u8 && state.is_closed()
}

/// Whether both directions of a flow are past their deadlines; the other direction's entry may be gone already.
pub(super) fn is_silent(deadline: u32, of_peer: Option<u32>, now: Ticks) -> bool {
    now.0 > deadline && of_peer.is_none_or(|deadline| now.0 > deadline)
}

/// Whether a service that remembers clients for `seconds`, zero for not at all, has not seen this one for longer.
pub(super) fn is_forgotten(last_used: u32, seconds: u32, now: Ticks) -> bool {
    let ticks = (u64::from(seconds) * 1_000_000_000) >> TICK_SHIFT;
    // A packet may be a tick ahead of `now`.
    let since = now.0.saturating_sub(last_used);
    seconds == 0 || u64::from(since) > ticks
}

/// Whether no more fragments of a datagram can come.
pub(super) fn is_reassembled(seen: u32, now: Ticks) -> bool {
    now.0.saturating_sub(seen) > REASSEMBLY.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Ticks = Ticks(1000);

    #[test]
    fn a_flow_is_silent_when_both_directions_are() {
        for (deadline, of_peer, expected) in [
            (999, Some(999), true),
            (999, None, true),
            (999, Some(1000), false),
            (999, Some(5000), false),
            (1000, Some(999), false),
            (1000, None, false),
            (5000, None, false),
        ] {
            assert_eq!(is_silent(deadline, of_peer, NOW), expected, "{deadline} {of_peer:?}");
        }
    }

    #[test]
    fn p50_datagrams_end_with_their_backend_and_connections_do_not() {
        let follows =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| follows_its_backend(protocol as u8));
        assert_eq!(follows, [false, true, true]);
    }

    #[test]
    fn only_closed_connections_need_no_look_at_the_other_direction() {
        let fin = |bits: u8| FlowState(FlowState::REPLIED.0 | bits);
        for (protocol, state, expected) in [
            (Protocol::Tcp, FlowState::default(), false),
            (Protocol::Tcp, fin(FlowState::ORIGINAL_FIN.0), false),
            (Protocol::Tcp, fin(FlowState::ORIGINAL_FIN.0 | FlowState::REPLY_FIN.0), true),
            (Protocol::Tcp, FlowState::RESET, true),
            (Protocol::Udp, fin(0), false),
        ] {
            assert_eq!(goes_alone(protocol as u8, state), expected, "{protocol:?} {state:?}");
        }
    }

    #[test]
    fn p27_a_client_is_remembered_for_the_time_of_its_service() {
        for (last_used, seconds, expected) in [
            (1000, 60, false),
            (1001, 60, false),
            (945, 60, false),
            (944, 60, true),
            (0, 10_800, false),
            (1000, 0, true),
        ] {
            assert_eq!(is_forgotten(last_used, seconds, NOW), expected, "{last_used} {seconds}");
        }
    }

    #[test]
    fn fragments_are_kept_for_a_minute() {
        assert_eq!(
            [1001, 1000, 945, 944, 943].map(|seen| is_reassembled(seen, NOW)),
            [false, false, false, false, true]
        );
    }
}
