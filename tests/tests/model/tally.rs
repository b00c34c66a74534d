//! What has become of packets.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// Something that becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// No service had to do with it.
    Untouched,
    /// Nobody could take it, and its sender was told.
    Refused,
    /// No service has its address, though services get theirs from there.
    Unowned,
    /// Others could have answered it, but not on this node.
    NotHere,
    /// Its sender is none of those that may use a balancer's address.
    NotAdmitted,
    /// A pod's, to itself.
    Hairpin,
    /// A pod's, to another one.
    Inside,
    /// A pod's, seemingly this node's.
    InsideMasqueraded,
    /// From outside to a backend on this node, seemingly this node's.
    OutsideMasqueraded,
    /// From outside to a backend on this node.
    OutsideLocal,
    /// From outside to a backend elsewhere.
    OutsideRemote,
    /// From the node itself to another one.
    Host,
    /// From the node itself to itself, which has no way.
    HostToItself,
    /// SCTP that arrives.
    Sctp,
    /// SCTP whose port would have to change.
    SctpPort,
    /// An ICMP error about a packet of a flow.
    Told,
    /// To one of several backends, because its sender was there before.
    Remembered,
    /// Not a flow's first one.
    Later,
    /// To another backend than the flow's packets before.
    Moved,
}

impl Event {
    /// All of them.
    const ALL: [Self; 19] = [
        Self::Untouched,
        Self::Refused,
        Self::Unowned,
        Self::NotHere,
        Self::NotAdmitted,
        Self::Hairpin,
        Self::Inside,
        Self::InsideMasqueraded,
        Self::OutsideMasqueraded,
        Self::OutsideLocal,
        Self::OutsideRemote,
        Self::Host,
        Self::HostToItself,
        Self::Sctp,
        Self::SctpPort,
        Self::Told,
        Self::Remembered,
        Self::Later,
        Self::Moved,
    ];
}

/// How often what has become of packets, so that a run without any of a kind is noticed.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<Event, u64>);

impl Tally {
    /// Counts `event`.
    pub(crate) fn count(&mut self, event: Event) {
        *self.0.entry(event).or_default() += 1;
    }

    /// Whether a run of `cases` has seen enough of each kind.
    pub(crate) fn has_seen_everything(&self, cases: u64) -> Result<()> {
        // The rarest comes about once in fifty cases.
        let rare: Vec<_> =
            Event::ALL.iter().filter(|event| self.0.get(event).copied().unwrap_or_default() < cases / 500).collect();
        ensure!(rare.is_empty(), "too few of {rare:?}: {self:?}");
        Ok(())
    }
}
