//! `sluice service list`: one line per frontend.

pub mod detail;

use std::path::Path;

use clap::{Args, Subcommand};
use dataplane_common::{Frontend, FrontendKind, NO_SERVICE, SlotRange};
use serde::Serialize;

use super::{
    filter::{AddressFilter, FamilyFilter, Limit, ServiceFilter, ServiceText},
    flow::family_name,
    output::{Column, Output, Record},
    pins, read,
};
use crate::tables::{FrontendAddr, Tables};

/// Commands about services.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// List frontends: the addresses and ports that clients send to
    List(List),
    /// Show the frontends of a service and the backends behind them
    Get {
        /// name, namespace/name or namespace/name:port
        name: String,
    },
}

/// Options of `sluice service list`.
#[derive(Args, Clone, Debug, Default)]
pub struct List {
    #[command(flatten)]
    service: ServiceFilter,
    #[command(flatten)]
    address: AddressFilter,
    #[command(flatten)]
    family: FamilyFilter,
    #[command(flatten)]
    limit: Limit,
}

/// A frontend as the listings show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FrontendRow {
    /// `namespace/name:port` of the service port.
    pub service: String,
    /// Which field of the Service it comes from.
    pub kind: &'static str,
    /// Address and port; a NodePort has the unspecified address.
    pub frontend: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Number of backends for clients on this node.
    pub backends: u32,
    /// Number of backends for clients that reach the node from outside.
    pub backends_outside: u32,
    /// Traffic policy: `Cluster` or `Local`.
    pub policy: &'static str,
    /// What happens to a client on this node without a backend: `reject` or `drop`.
    pub when_empty: &'static str,
    /// The same for a client outside.
    pub when_empty_outside: &'static str,
    /// `ClientIP` affinity in seconds, zero when there is none.
    pub affinity_seconds: u32,
    /// The service port's id in the maps.
    pub service_id: u32,
}

impl FrontendRow {
    /// The row of one map entry.
    pub fn new(tables: &Tables, frontend: &FrontendAddr, value: &Frontend) -> Self {
        let when_empty = |flag| if value.flags & flag == 0 { "reject" } else { "drop" };
        Self {
            service: service_name(tables, value.service),
            kind: FrontendKind::from_number(value.kind).map_or("unknown", FrontendKind::name),
            frontend: address(frontend),
            protocol: frontend.protocol_name(),
            family: family_name(frontend.addr),
            backends: value.inside.count,
            backends_outside: value.outside.count,
            policy: if value.flags & Frontend::LOCAL_POLICY == 0 { "Cluster" } else { "Local" },
            when_empty: when_empty(Frontend::DROP_INSIDE),
            when_empty_outside: when_empty(Frontend::DROP_OUTSIDE),
            affinity_seconds: value.affinity_seconds,
            service_id: value.service,
        }
    }
}

impl Record for FrontendRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("service"),
        Column::new("kind"),
        Column::new("frontend"),
        Column::new("protocol"),
        Column::new("backends"),
        Column::new("policy"),
        Column::wide("when empty"),
        Column::wide("affinity"),
        Column::wide("id"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.kind.into(),
            self.frontend.clone(),
            self.protocol.into(),
            both(self.backends, self.backends_outside),
            self.policy.into(),
            both(self.when_empty, self.when_empty_outside),
            affinity(self.affinity_seconds),
            self.service_id.to_string(),
        ]
    }
}

/// Runs a command about services.
pub fn run(command: Service, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let tables = read::tables(bpffs)?;
    match command {
        Service::List(list) => output.list_or(&rows(&tables, &list), "no frontends"),
        Service::Get { name } => detail::print(&detail::services(&tables, &name)?, output),
    }
}

/// The frontends that pass the filters, by service, kind and address.
pub fn rows(tables: &Tables, list: &List) -> Vec<FrontendRow> {
    let mut frontends: Vec<_> = tables
        .frontends
        .iter()
        .filter(|(frontend, value)| {
            let end = std::net::SocketAddr::new(frontend.addr, frontend.port);
            frontend.is_served()
                && list.family.admits(frontend.addr)
                && list.address.admits(&[end], frontend.protocol.map_or(0, |protocol| protocol as u8))
                && list.service.admits(&service_name(tables, value.service))
        })
        .map(|(frontend, value)| (service_name(tables, value.service), value.kind, *frontend, value))
        .collect();
    frontends.sort_by(|a, b| (&a.0, a.1, a.2).cmp(&(&b.0, b.1, b.2)));
    let mut rows = frontends.iter().map(|(_, _, frontend, value)| FrontendRow::new(tables, frontend, value)).collect();
    list.limit.cut(&mut rows);
    rows
}

/// The name of the service port `id`, `#id` when it has lost it, or `-` for none.
pub fn service_name(tables: &Tables, id: u32) -> String {
    if id == NO_SERVICE {
        return "-".to_owned();
    }
    tables.service_names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
}

/// The ids of the service ports that `name` names.
pub fn named<'a>(tables: &'a Tables, name: &'a str) -> impl Iterator<Item = (u32, &'a str)> {
    let wanted = ServiceText::parse(name);
    tables
        .service_names
        .iter()
        .filter(move |(_, text)| wanted.names(&ServiceText::parse(text)))
        .map(|(id, text)| (*id, text.as_str()))
}

/// `address:port`, as [`std::net::SocketAddr`] writes it.
pub fn address(frontend: &FrontendAddr) -> String {
    std::net::SocketAddr::new(frontend.addr, frontend.port).to_string()
}

/// The slots of `range`.
pub const fn slots(range: SlotRange) -> std::ops::Range<u32> {
    range.first..range.first.saturating_add(range.count)
}

/// One value when it holds for all clients, else the two.
fn both<T: PartialEq + ToString>(inside: T, outside: T) -> String {
    if inside == outside {
        inside.to_string()
    } else {
        format!("{} (outside {})", inside.to_string(), outside.to_string())
    }
}

/// An affinity timeout in a cell.
fn affinity(seconds: u32) -> String {
    if seconds == 0 { "none".into() } else { format!("{seconds} s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{fixture, output::Format};

    #[track_caller]
    fn check(list: &List, format: Format, expected: &str) {
        let rows = rows(&fixture::tables(), list);
        assert_eq!(Output { format, no_headers: true }.table(&rows, false), expected);
    }

    #[test]
    fn frontends_are_listed_by_service_kind_and_address() {
        check(
            &List::default(),
            Format::Table,
            "\
default/web:http  ClusterIP  10.96.0.1:80     TCP  3              Cluster
default/web:http  ClusterIP  [fd00:96::1]:80  TCP  1              Cluster
default/web:http  NodePort   0.0.0.0:30080    TCP  3 (outside 1)  Local
kube-system/dns   ClusterIP  10.96.0.10:53    UDP  0              Cluster
",
        );
    }

    #[test]
    fn wide_shows_what_happens_without_backends_and_affinity() {
        let list = List {
            service: ServiceFilter { service: Some("dns".into()), ..ServiceFilter::default() },
            ..List::default()
        };
        check(&list, Format::Wide, "kube-system/dns  ClusterIP  10.96.0.10:53  UDP  0  Cluster  reject  10800 s  9\n");
    }

    #[test]
    fn filters_narrow_the_list() {
        let list = List { family: FamilyFilter { ipv4: false, ipv6: true }, ..List::default() };
        check(&list, Format::Table, "default/web:http  ClusterIP  [fd00:96::1]:80  TCP  1  Cluster\n");
        let list = List { address: AddressFilter { port: Some(30080), ..AddressFilter::default() }, ..List::default() };
        check(&list, Format::Table, "default/web:http  NodePort  0.0.0.0:30080  TCP  3 (outside 1)  Local\n");
        let list = List { limit: Limit { limit: Some(0) }, ..List::default() };
        check(&list, Format::Table, "");
    }

    #[test]
    fn json_has_numbers_as_numbers_and_addresses_as_text() {
        let rows = rows(&fixture::tables(), &List::default());
        assert_eq!(
            serde_json::to_value(&rows[2]).unwrap(),
            serde_json::json!({
                "service": "default/web:http", "kind": "NodePort", "frontend": "0.0.0.0:30080", "protocol": "TCP",
                "family": "IPv4", "backends": 3, "backends_outside": 1, "policy": "Local", "when_empty": "reject",
                "when_empty_outside": "drop", "affinity_seconds": 0, "service_id": 7
            })
        );
    }
}
