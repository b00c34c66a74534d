//! `sluice conntrack list`: one line per flow, or one per entry.

use clap::Args;
use dataplane_common::{Direction, Next, Side, Ticks};
use serde::Serialize;

use super::FlowFilter;
use crate::{
    cli::{
        filter::Limit,
        flow::{Entries, FlowEntry, JoinedFlow, family_name, protocol_name},
        output::{Column, Output, Record},
        read,
        service::service_name,
    },
    tables::{BackendId, IpFamily, Tables},
};

/// Options of `sluice conntrack list`.
#[derive(Args, Clone, Debug, Default)]
pub struct List {
    #[command(flatten)]
    pub(super) filter: FlowFilter,
    /// One line per map entry, which is one direction of a flow
    #[arg(long)]
    pub(super) entries: bool,
    #[command(flatten)]
    pub(super) limit: Limit,
}

/// A flow as the listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowLine {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Who began.
    pub client: String,
    /// What the client sends to.
    pub frontend: String,
    /// Source of the client's packets after translation; the client itself unless there is an SNAT.
    pub translated_source: String,
    /// Destination of the client's packets after translation.
    pub backend: String,
    /// Whether the backend still exists as it was when it was chosen.
    pub backend_exists: bool,
    /// `namespace/name:port` of the service port.
    pub service: String,
    /// Conntrack state.
    pub state: &'static str,
    /// Seconds until the flow is forgotten when nothing more comes; negative once it may be.
    pub expires_seconds: i64,
    /// Packets of the client.
    pub packets: u64,
    /// Bytes of the client.
    pub bytes: u64,
    /// Packets that came back; null when the map has no entry for answers.
    pub reply_packets: Option<u64>,
    /// Bytes that came back; null when the map has no entry for answers.
    pub reply_bytes: Option<u64>,
    /// The backend's index in the family's map.
    pub backend_id: u32,
    /// The service port's id in the maps.
    pub service_id: u32,
}

impl FlowLine {
    /// The line of a flow.
    pub fn new(flow: JoinedFlow<'_>, tables: &Tables, now: Ticks) -> Self {
        let JoinedFlow { original, reply } = flow;
        let id = BackendId { family: IpFamily::of(original.key.dst.ip()), number: original.backend };
        // Both directions keep a flow alive.
        let expires = [Some(original), reply].into_iter().flatten().map(|entry| entry.expires_seconds(now)).max();
        Self {
            protocol: protocol_name(original.key.protocol),
            family: family_name(original.key.src.ip()),
            client: original.key.src.to_string(),
            frontend: flow.frontend().to_string(),
            translated_source: original.translated.src.to_string(),
            backend: original.translated.dst.to_string(),
            backend_exists: flow.is_adopted()
                || tables.backends.get(&id).is_some_and(|backend| backend.generation == original.generation),
            service: service_name(tables, original.service),
            state: original.state_name(),
            expires_seconds: expires.unwrap_or_default(),
            packets: original.packets,
            bytes: original.bytes,
            reply_packets: reply.map(|reply| reply.packets),
            reply_bytes: reply.map(|reply| reply.bytes),
            backend_id: original.backend,
            service_id: original.service,
        }
    }
}

impl Record for FlowLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("protocol"),
        Column::new("client"),
        Column::new("frontend"),
        Column::new("backend"),
        Column::new("service"),
        Column::new("state"),
        Column::new("expires"),
        Column::new("packets"),
        Column::new("bytes"),
        Column::wide("translated source"),
        Column::wide("backend id"),
    ];

    fn cells(&self) -> Vec<String> {
        let both = |original: u64, reply: Option<u64>| match reply {
            Some(reply) => format!("{original}/{reply}"),
            None => format!("{original}/-"),
        };
        vec![
            self.protocol.clone(),
            self.client.clone(),
            self.frontend.clone(),
            if self.backend_exists { self.backend.clone() } else { format!("{} (gone)", self.backend) },
            self.service.clone(),
            self.state.into(),
            expiry(self.expires_seconds),
            both(self.packets, self.reply_packets),
            both(self.bytes, self.reply_bytes),
            self.translated_source.clone(),
            self.backend_id.to_string(),
        ]
    }
}

/// One conntrack entry as the listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryLine {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// `original` or `reply`.
    pub direction: &'static str,
    /// Source of the packets.
    pub source: String,
    /// Their destination.
    pub destination: String,
    /// Their source after translation.
    pub translated_source: String,
    /// Their destination after translation.
    pub translated_destination: String,
    /// Where they are translated: `ingress` or `egress` of the host's side of an interface.
    pub side: &'static str,
    /// Where they go: `stack`, `route`, `bounce`, `receive`, `direct` or `stack-only`.
    pub next: &'static str,
    /// `namespace/name:port` of the service port.
    pub service: String,
    /// Conntrack state.
    pub state: &'static str,
    /// Seconds until the entry expires; negative once it has.
    pub expires_seconds: i64,
    /// Packets seen.
    pub packets: u64,
    /// Bytes seen.
    pub bytes: u64,
    /// The backend's index in the family's map.
    pub backend_id: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// The service port's id in the maps.
    pub service_id: u32,
}

impl EntryLine {
    /// The line of an entry.
    pub fn new(entry: &FlowEntry, tables: &Tables, now: Ticks) -> Self {
        Self {
            protocol: protocol_name(entry.key.protocol),
            family: family_name(entry.key.src.ip()),
            direction: match entry.direction {
                Direction::Original => "original",
                Direction::Reply => "reply",
            },
            source: entry.key.src.to_string(),
            destination: entry.key.dst.to_string(),
            translated_source: entry.translated.src.to_string(),
            translated_destination: entry.translated.dst.to_string(),
            side: match entry.side {
                Side::Ingress => "ingress",
                Side::Egress => "egress",
            },
            next: match entry.next {
                Next::Stack => "stack",
                Next::Route => "route",
                Next::Bounce => "bounce",
                Next::Receive => "receive",
                Next::Direct => "direct",
                Next::StackOnly => "stack-only",
            },
            service: service_name(tables, entry.service),
            state: entry.state_name(),
            expires_seconds: entry.expires_seconds(now),
            packets: entry.packets,
            bytes: entry.bytes,
            backend_id: entry.backend,
            generation: entry.generation,
            service_id: entry.service,
        }
    }
}

impl Record for EntryLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("protocol"),
        Column::new("direction"),
        Column::new("source"),
        Column::new("destination"),
        Column::new("translated source"),
        Column::new("translated destination"),
        Column::new("state"),
        Column::new("expires"),
        Column::new("packets"),
        Column::new("bytes"),
        Column::wide("service"),
        Column::wide("side"),
        Column::wide("next"),
        Column::wide("backend id"),
        Column::wide("generation"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.direction.into(),
            self.source.clone(),
            self.destination.clone(),
            self.translated_source.clone(),
            self.translated_destination.clone(),
            self.state.into(),
            expiry(self.expires_seconds),
            self.packets.to_string(),
            self.bytes.to_string(),
            self.service.clone(),
            self.side.into(),
            self.next.into(),
            self.backend_id.to_string(),
            self.generation.to_string(),
        ]
    }
}

/// Prints flows or entries.
pub(super) fn run(args: &List, tables: &Tables, entries: &Entries, output: Output) -> anyhow::Result<()> {
    let now = read::now()?;
    if args.entries {
        output.list_or(&entry_lines(args, tables, entries, now), "no conntrack entries")
    } else {
        output.list_or(&flow_lines(args, tables, entries, now), "no flows")
    }
}

/// The flows that pass the filters, by protocol, client and frontend.
pub fn flow_lines(args: &List, tables: &Tables, entries: &Entries, now: Ticks) -> Vec<FlowLine> {
    entries
        .flows()
        .filter(|flow| args.filter.admits(flow.original, tables))
        .take(args.limit.count())
        .map(|flow| FlowLine::new(flow, tables, now))
        .collect()
}

/// The entries that pass the filters, by protocol, source and destination.
pub fn entry_lines(args: &List, tables: &Tables, entries: &Entries, now: Ticks) -> Vec<EntryLine> {
    entries
        .iter()
        .filter(|entry| args.filter.admits(entry, tables))
        .take(args.limit.count())
        .map(|entry| EntryLine::new(entry, tables, now))
        .collect()
}

/// Seconds left, in a cell.
pub fn expiry(seconds: i64) -> String {
    if seconds < 0 { "expired".into() } else { format!("{seconds} s") }
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;
    use crate::cli::{fixture, flow::tests::flow, output::Format};

    const NOW: Ticks = Ticks(900);

    fn entries() -> Entries {
        let direct = flow(Protocol::Tcp, ["10.0.0.9:40000", "10.96.0.1:80", "10.0.0.9:40000", "10.0.0.5:8080"]);
        let [mut masqueraded, _] =
            flow(Protocol::Tcp, ["172.16.0.9:5555", "192.168.0.1:30080", "192.168.0.1:12288", "10.0.1.5:8080"]);
        masqueraded.generation = 3;
        direct.into_iter().chain([masqueraded]).collect()
    }

    #[test]
    fn a_flow_is_one_line_with_the_counters_of_both_directions() {
        let lines = flow_lines(&List::default(), &fixture::tables(), &entries(), NOW);
        assert_eq!(
            Output { format: Format::Table, no_headers: true }.table(&lines, false),
            "\
TCP  10.0.0.9:40000   10.96.0.1:80       10.0.0.5:8080         default/web:http  established  107 s  3/2  180/120
TCP  172.16.0.9:5555  192.168.0.1:30080  10.0.1.5:8080 (gone)  default/web:http  established  107 s  3/-  180/-
"
        );
    }

    #[test]
    fn entries_are_lines_of_their_own() {
        let args = List { entries: true, limit: Limit { limit: Some(2) }, ..List::default() };
        let lines = entry_lines(&args, &fixture::tables(), &entries(), NOW);
        assert_eq!(
            Output { format: Format::Table, no_headers: true }.table(&lines, false),
            "\
TCP  reply     10.0.0.5:8080   10.0.0.9:40000  10.96.0.1:80    10.0.0.9:40000  established  107 s  2  120
TCP  original  10.0.0.9:40000  10.96.0.1:80    10.0.0.9:40000  10.0.0.5:8080   established  107 s  3  180
"
        );
    }

    #[test]
    fn json_joins_the_directions_and_leaves_missing_answers_null() {
        let lines = flow_lines(&List::default(), &fixture::tables(), &entries(), NOW);
        assert_eq!(
            serde_json::to_value(&lines[1]).unwrap(),
            serde_json::json!({
                "protocol": "TCP", "family": "IPv4", "client": "172.16.0.9:5555", "frontend": "192.168.0.1:30080",
                "translated_source": "192.168.0.1:12288", "backend": "10.0.1.5:8080", "backend_exists": false,
                "service": "default/web:http", "state": "established", "expires_seconds": 107, "packets": 3,
                "bytes": 180, "reply_packets": null, "reply_bytes": null, "backend_id": 1, "service_id": 7
            })
        );
    }
}
