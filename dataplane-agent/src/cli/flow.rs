//! Conntrack entries of both families in one plain type, and flows: both directions joined.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use dataplane_common::{Addr, Direction, Flow, FlowKey, FlowState, Next, Protocol, Side, Ticks};

/// The name of `addr`'s family.
pub const fn family_name(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The name of the protocol with IANA number `number`.
pub fn protocol_name(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.name().to_owned())
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// IANA protocol number.
    pub protocol: u8,
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it goes to.
    pub dst: SocketAddr,
}

impl Tuple {
    /// The tuple in a key.
    pub fn new<A: Addr>(key: &FlowKey<A>) -> Self {
        Self {
            protocol: key.protocol,
            src: SocketAddr::new(key.src.to_ip(), key.src_port.get()),
            dst: SocketAddr::new(key.dst.to_ip(), key.dst_port.get()),
        }
    }

    /// The tuple of an answer.
    pub const fn reversed(&self) -> Self {
        Self { protocol: self.protocol, src: self.dst, dst: self.src }
    }
}

/// One conntrack entry: one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// Packets that the entry is for.
    pub key: Tuple,
    /// The same packets after their rewrite.
    pub translated: Tuple,
    /// Packets seen.
    pub packets: u64,
    /// Bytes seen.
    pub bytes: u64,
    /// Id of the backend.
    pub backend: u32,
    /// Generation of the backend when it was chosen.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
    /// When the entry expires.
    pub deadline: Ticks,
    /// Which direction.
    pub direction: Direction,
    /// Where the rewrite happens.
    pub side: Side,
    /// Where the packets go.
    pub next: Next,
    /// What has been seen.
    pub state: FlowState,
}

impl FlowEntry {
    /// Decodes an entry.
    pub fn new<A: Addr>(key: &FlowKey<A>, value: &Flow<A>) -> Self {
        Self {
            key: Tuple::new(key),
            translated: Tuple::new(&value.translated(key.protocol)),
            packets: value.packets,
            bytes: value.bytes,
            backend: value.backend,
            generation: value.generation,
            service: value.service,
            deadline: Ticks(value.deadline),
            direction: Direction::of(value.direction),
            side: Side::of(value.side),
            next: match value.next {
                1 => Next::Route,
                2 => Next::Bounce,
                3 => Next::Receive,
                4 => Next::Direct,
                5 => Next::StackOnly,
                _ => Next::Stack,
            },
            state: value.state,
        }
    }

    /// The key of the flow's other direction.
    pub const fn other(&self) -> Tuple {
        self.translated.reversed()
    }

    /// The same of answers to a request that came with the backend's address, because another node has chosen that.
    pub const fn announced_request(&self) -> Tuple {
        Tuple { protocol: self.key.protocol, src: self.translated.dst, dst: self.key.src }
    }

    /// The state's name.
    pub const fn state_name(&self) -> &'static str {
        self.state.name(self.key.protocol)
    }

    /// Whether the rewrite changes the source.
    pub fn changes_source(&self) -> bool {
        self.key.src != self.translated.src
    }

    /// Seconds until the entry expires; negative when it has and waits to be removed.
    pub fn expires_seconds(&self, now: Ticks) -> i64 {
        let milliseconds = |ticks: Ticks| i64::try_from(ticks.as_millis()).unwrap_or(i64::MAX);
        (milliseconds(self.deadline) - milliseconds(now)).div_euclid(1000)
    }
}

/// Both directions of a flow, as far as the map holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedFlow<'a> {
    /// The direction of the client's packets.
    pub original: &'a FlowEntry,
    /// The direction of the answers.
    pub reply: Option<&'a FlowEntry>,
}

impl JoinedFlow<'_> {
    /// Whether another node has chosen the backend, and this one answers in the frontend's name (direct server return).
    pub fn is_adopted(&self) -> bool {
        self.original.key == self.original.translated && self.original.backend == 0
    }

    /// What the client sends to.
    pub fn frontend(&self) -> SocketAddr {
        match self.reply {
            Some(reply) if self.is_adopted() => reply.translated.src,
            _ => self.original.key.dst,
        }
    }
}

/// Every conntrack entry that was read, by its key.
#[derive(Clone, Debug, Default)]
pub struct Entries(BTreeMap<Tuple, FlowEntry>);

impl FromIterator<FlowEntry> for Entries {
    fn from_iter<I: IntoIterator<Item = FlowEntry>>(entries: I) -> Self {
        Self(entries.into_iter().map(|entry| (entry.key, entry)).collect())
    }
}

impl Extend<FlowEntry> for Entries {
    fn extend<I: IntoIterator<Item = FlowEntry>>(&mut self, entries: I) {
        self.0.extend(entries.into_iter().map(|entry| (entry.key, entry)));
    }
}

impl Entries {
    /// Every entry, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = &FlowEntry> {
        self.0.values()
    }

    /// The entry of the other direction of the flow that `entry` belongs to.
    pub fn other(&self, entry: &FlowEntry) -> Option<&FlowEntry> {
        [entry.other(), entry.announced_request()]
            .iter()
            .filter_map(|key| self.0.get(key))
            .find(|other| other.direction != entry.direction)
    }

    /// Every flow whose original direction is there.
    pub fn flows(&self) -> impl Iterator<Item = JoinedFlow<'_>> {
        self.iter()
            .filter(|entry| entry.direction == Direction::Original)
            .map(|original| JoinedFlow { original, reply: self.other(original) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The entries of one flow from `client` to `frontend`, sent on as from `source` to `backend`.
    pub(in crate::cli) fn flow(protocol: Protocol, addresses: [&str; 4]) -> [FlowEntry; 2] {
        let [client, frontend, source, backend] = addresses.map(|text| text.parse().unwrap());
        let protocol = protocol as u8;
        let original = FlowEntry {
            key: Tuple { protocol, src: client, dst: frontend },
            translated: Tuple { protocol, src: source, dst: backend },
            packets: 3,
            bytes: 180,
            backend: 1,
            generation: 1,
            service: 7,
            deadline: Ticks(1000),
            direction: Direction::Original,
            side: Side::Ingress,
            next: Next::Stack,
            state: FlowState::REPLIED,
        };
        let reply = FlowEntry {
            key: original.translated.reversed(),
            translated: original.key.reversed(),
            packets: 2,
            bytes: 120,
            direction: Direction::Reply,
            side: Side::Egress,
            ..original
        };
        [original, reply]
    }

    #[test]
    fn the_two_directions_of_a_flow_find_each_other() {
        let [original, reply] =
            flow(Protocol::Tcp, ["10.0.0.9:40000", "10.96.0.1:80", "10.0.0.9:40000", "10.0.1.5:8080"]);
        let entries: Entries = [original, reply].into_iter().collect();
        assert_eq!(entries.flows().collect::<Vec<_>>(), [JoinedFlow { original: &original, reply: Some(&reply) }]);
        assert_eq!(entries.other(&reply), Some(&original));
    }

    #[test]
    fn a_flow_that_another_node_began_shows_the_frontend_of_that_node() {
        let [original, reply] =
            flow(Protocol::Tcp, ["172.16.0.9:40000", "192.168.0.1:30080", "172.16.0.9:40000", "10.0.1.5:8080"]);
        let request = FlowEntry { key: original.translated, backend: 0, ..original };
        let entries: Entries = [request, reply].into_iter().collect();
        let flows: Vec<_> = entries.flows().collect();
        assert_eq!(flows, [JoinedFlow { original: &request, reply: Some(&reply) }]);
        assert!(flows[0].is_adopted());
        assert_eq!(flows[0].frontend().to_string(), "192.168.0.1:30080");
        assert_eq!(entries.other(&reply), Some(&request));
    }

    #[test]
    fn an_original_entry_alone_is_a_flow_without_answers() {
        let [original, reply] =
            flow(Protocol::Udp, ["10.0.0.9:40000", "10.96.0.1:53", "10.0.0.9:40000", "10.0.1.5:53"]);
        let entries: Entries = [original].into_iter().collect();
        assert_eq!(entries.flows().count(), 1);
        assert_eq!(entries.other(&original), None);
        let orphan: Entries = [reply].into_iter().collect();
        assert_eq!(orphan.flows().count(), 0);
    }

    #[test]
    fn an_entry_past_its_deadline_has_negative_seconds_left() {
        let [original, _] = flow(Protocol::Tcp, ["10.0.0.9:1", "10.96.0.1:80", "10.0.0.9:1", "10.0.1.5:80"]);
        assert_eq!(original.expires_seconds(Ticks(1000)), 0);
        assert_eq!(original.expires_seconds(Ticks(900)), 107);
        assert_eq!(original.expires_seconds(Ticks(1001)), -2);
    }
}
