//! `sluice nat list`: flows whose source is translated, and the port each of them holds.

use std::path::Path;

use clap::{Args, Subcommand};
use dataplane_common::{Next, Ticks};
use serde::Serialize;

use super::{
    conntrack::{FlowFilter, list::expiry},
    filter::Limit,
    flow::{Entries, FlowEntry, family_name, protocol_name},
    output::{Column, Output, Record},
    pins, read,
    service::service_name,
};
use crate::tables::Tables;

/// Commands about source translation.
#[derive(Debug, Subcommand)]
pub enum Nat {
    /// List flows whose source is translated
    List(List),
}

/// Options of `sluice nat list`.
#[derive(Args, Clone, Debug, Default)]
pub struct List {
    #[command(flatten)]
    filter: FlowFilter,
    #[command(flatten)]
    limit: Limit,
}

/// A translated source as the listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NatLine {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Who began.
    pub client: String,
    /// What the client sends to.
    pub frontend: String,
    /// The address and port that the backend sees instead of the client.
    pub node: String,
    /// What answers.
    pub backend: String,
    /// `snat` through an address of the node, or `hairpin` of a pod that reaches itself.
    pub kind: &'static str,
    /// `namespace/name:port` of the service port.
    pub service: String,
    /// Conntrack state.
    pub state: &'static str,
    /// Seconds until the flow is forgotten when nothing more comes from the client; negative once it may be.
    pub expires_seconds: i64,
}

impl NatLine {
    fn new(entry: &FlowEntry, tables: &Tables, now: Ticks) -> Self {
        Self {
            protocol: protocol_name(entry.key.protocol),
            family: family_name(entry.key.src.ip()),
            client: entry.key.src.to_string(),
            frontend: entry.key.dst.to_string(),
            node: entry.translated.src.to_string(),
            backend: entry.translated.dst.to_string(),
            kind: if entry.next == Next::Bounce { "hairpin" } else { "snat" },
            service: service_name(tables, entry.service),
            state: entry.state_name(),
            expires_seconds: entry.expires_seconds(now),
        }
    }
}

impl Record for NatLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("protocol"),
        Column::new("client"),
        Column::new("frontend"),
        Column::new("node"),
        Column::new("backend"),
        Column::new("kind"),
        Column::new("state"),
        Column::wide("service"),
        Column::wide("expires"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.client.clone(),
            self.frontend.clone(),
            self.node.clone(),
            self.backend.clone(),
            self.kind.into(),
            self.state.into(),
            self.service.clone(),
            expiry(self.expires_seconds),
        ]
    }
}

/// Runs a command about source translation.
pub fn run(command: &Nat, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let Nat::List(list) = command;
    let tables = read::tables(bpffs)?;
    let entries = read::entries(bpffs, list.filter.family)?;
    output.list_or(&rows(list, &tables, &entries, read::now()?), "no flow has a translated source")
}

/// The flows with a translated source that pass the filters.
pub fn rows(list: &List, tables: &Tables, entries: &Entries, now: Ticks) -> Vec<NatLine> {
    entries
        .flows()
        .map(|flow| flow.original)
        .filter(|entry| entry.changes_source() && list.filter.admits(entry, tables))
        .take(list.limit.count())
        .map(|entry| NatLine::new(entry, tables, now))
        .collect()
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;
    use crate::cli::{fixture, flow::tests::flow};

    #[test]
    fn only_flows_with_a_translated_source_are_listed() {
        let plain = flow(Protocol::Tcp, ["10.0.0.9:1", "10.96.0.1:80", "10.0.0.9:1", "10.0.0.5:8080"]);
        let snat = flow(Protocol::Tcp, ["172.16.0.9:5555", "192.168.0.1:30080", "192.168.0.1:12288", "10.0.1.5:8080"]);
        let mut hairpin = flow(Protocol::Udp, ["10.0.0.5:7", "10.96.0.1:80", "169.254.42.1:7", "10.0.0.5:8080"]);
        hairpin[0].next = Next::Bounce;
        let entries: Entries = plain.into_iter().chain(snat).chain(hairpin).collect();
        let rows = rows(&List::default(), &fixture::tables(), &entries, Ticks(900));
        assert_eq!(
            Output { no_headers: true, ..Output::default() }.table(&rows, false),
            "\
TCP  172.16.0.9:5555  192.168.0.1:30080  192.168.0.1:12288  10.0.1.5:8080  snat     established
UDP  10.0.0.5:7       10.96.0.1:80       169.254.42.1:7     10.0.0.5:8080  hairpin  stream
"
        );
    }
}
