//! `sluice backend list`: the endpoints that answer, one line per service port.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    filter::{AddressFilter, FamilyFilter, Limit, ServiceFilter},
    flow::family_name,
    output::{Column, Output, Record},
    pins, read,
    service::service_name,
};
use crate::tables::{BackendId, BackendRow, Tables, counted_slots};

/// Commands about backends.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// List backends
    List(List),
}

/// Options of `sluice backend list`.
#[derive(Args, Clone, Debug, Default)]
pub struct List {
    #[command(flatten)]
    service: ServiceFilter,
    #[command(flatten)]
    address: AddressFilter,
    #[command(flatten)]
    family: FamilyFilter,
    /// Only backends in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    #[command(flatten)]
    limit: Limit,
}

/// What a backend is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// New flows may go there
    Ready,
    /// It is terminating: flows may finish, and new ones come only when nothing is ready
    Draining,
    /// No frontend counts a slot that names it
    Unused,
}

impl State {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unused => "unused",
        }
    }
}

/// A backend as the listings show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BackendLine {
    /// `namespace/name:port` of the service port it belongs to.
    pub service: String,
    /// Address and port.
    pub backend: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// What it is used for.
    pub state: State,
    /// Whether the endpoint runs on this node.
    pub local: bool,
    /// The slots that name it.
    pub slots: Vec<u32>,
    /// Its index in the family's map.
    pub backend_id: u32,
    /// Grows when the id is given to another endpoint.
    pub generation: u32,
    /// The service port's id in the maps.
    pub service_id: u32,
}

impl Record for BackendLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("service"),
        Column::new("backend"),
        Column::new("protocol"),
        Column::new("state"),
        Column::new("node"),
        Column::wide("slots"),
        Column::wide("id"),
        Column::wide("generation"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.backend.clone(),
            self.protocol.into(),
            self.state.name().into(),
            if self.local { "this" } else { "other" }.into(),
            ranges(&self.slots),
            self.backend_id.to_string(),
            self.generation.to_string(),
        ]
    }
}

/// Runs a command about backends.
pub fn run(command: &Backend, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let Backend::List(list) = command;
    output.list_or(&rows(&read::tables(bpffs)?, list), "no backends")
}

/// The backends that pass the filters, by service and address.
pub fn rows(tables: &Tables, list: &List) -> Vec<BackendLine> {
    let mut rows = lines(tables, |backend| {
        list.family.admits(backend.addr.ip())
            && list.address.admits(&[backend.addr], backend.protocol as u8)
            && list.service.admits(&service_name(tables, backend.service))
    });
    rows.retain(|row| list.state.is_none_or(|state| state == row.state));
    list.limit.cut(&mut rows);
    rows
}

/// The backends that `wanted` admits, by service and address.
pub fn lines(tables: &Tables, wanted: impl Fn(&BackendRow) -> bool) -> Vec<BackendLine> {
    let slots = slots_by_backend(tables);
    let mut lines: Vec<_> = tables
        .backends
        .iter()
        .filter(|(_, backend)| wanted(backend))
        .map(|(id, backend)| {
            let slots: Vec<u32> = slots.get(id).into_iter().flatten().copied().collect();
            BackendLine {
                service: service_name(tables, backend.service),
                backend: backend.addr.to_string(),
                protocol: backend.protocol.name(),
                family: family_name(backend.addr.ip()),
                state: state(backend.flags, &slots),
                local: backend.flags & BackendRow::LOCAL != 0,
                slots,
                backend_id: id.number,
                generation: backend.generation,
                service_id: backend.service,
            }
        })
        .collect();
    lines.sort();
    lines
}

/// What a backend with these flags and slots is used for.
fn state(flags: u8, slots: &[u32]) -> State {
    if flags & BackendRow::TERMINATING != 0 {
        State::Draining
    } else if slots.is_empty() {
        State::Unused
    } else {
        State::Ready
    }
}

/// The slots that name each backend.
fn slots_by_backend(tables: &Tables) -> BTreeMap<BackendId, BTreeSet<u32>> {
    let mut slots = BTreeMap::<BackendId, BTreeSet<u32>>::new();
    for slot in tables.frontends.values().flat_map(counted_slots) {
        if let Some(id) = tables.slots.get(&slot) {
            slots.entry(*id).or_default().insert(slot);
        }
    }
    slots
}

/// Sorted numbers as `1-3,7`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut texts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match texts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => texts.push((*number, *number)),
        }
    }
    if texts.is_empty() {
        return "none".into();
    }
    let text = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    texts.iter().map(text).collect::<Vec<_>>().join(",")
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
    fn backends_are_listed_with_their_state_and_place() {
        check(
            &List::default(),
            Format::Wide,
            "\
default/web:http  10.0.0.5:8080   TCP  ready     this   8     1  1
default/web:http  10.0.1.5:8080   TCP  ready     other  9     2  1
default/web:http  10.0.1.6:8080   TCP  draining  other  10    3  1
default/web:http  10.0.1.7:8080   TCP  draining  other  none  4  1
default/web:http  [fd00::5]:8080  TCP  ready     this   16    1  1
",
        );
    }

    #[test]
    fn a_state_narrows_the_list() {
        let list = List { state: Some(State::Draining), limit: Limit { limit: Some(1) }, ..List::default() };
        check(&list, Format::Table, "default/web:http  10.0.1.6:8080  TCP  draining  other\n");
    }

    #[test]
    fn consecutive_slots_are_one_range() {
        assert_eq!(ranges(&[]), "none");
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
    }
}
