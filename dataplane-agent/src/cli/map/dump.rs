//! `sluice map dump`: the entries of one map, decoded but not interpreted.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use aya::{
    Pod,
    maps::{Array, Map, PerCpuArray, PerCpuValues},
};
use clap::{Args, builder::PossibleValuesParser};
use dataplane_common::{
    Addr, Affinity, AffinityKey, Exit, Family, FragmentKey, FragmentPorts, Frontend, FrontendKind, PairWay, Scope,
    SlotRange, SocketKey, SocketOrigin, V4, V6,
    map::{self, MapSpec},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{
        conntrack::list::EntryLine,
        filter::{FamilyFilter, Limit},
        flow::protocol_name,
        output::{Column, Output, Record},
        read,
    },
    maps::{
        observed::{self, ObservedFamily},
        pinned::{self, Access},
    },
    tables::{FrontendAddr, IpFamily, Tables, cidr_words, device_words, local_addr_words},
};

/// Options of `sluice map dump`.
#[derive(Args, Clone, Debug)]
pub struct Dump {
    /// The map's name, as `sluice map list` shows it
    #[arg(value_parser = PossibleValuesParser::new(map::ALL.iter().map(|spec| spec.name)))]
    name: String,
    #[command(flatten)]
    limit: Limit,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EntryDump {
    /// The key: a number, a text or an object.
    pub key: Value,
    /// The value: a number, a text or an object.
    pub value: Value,
}

impl Record for EntryDump {
    const COLUMNS: &'static [Column] = &[Column::new("key"), Column::new("value")];

    fn cells(&self) -> Vec<String> {
        vec![plain(&self.key), plain(&self.value)]
    }
}

/// Prints the entries of a map.
pub(super) fn run(args: &Dump, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    let spec = map::ALL.iter().find(|spec| spec.name == args.name).context("no such map")?;
    let mut entries = entries(spec, bpffs)?;
    args.limit.cut(&mut entries);
    output.list_or(&entries, "the map is empty")
}

fn entries(spec: &MapSpec, bpffs: &Path) -> anyhow::Result<Vec<EntryDump>> {
    Ok(match *spec {
        map::CONNTRACK4 => flows(bpffs, FamilyFilter { ipv4: true, ipv6: false })?,
        map::CONNTRACK6 => flows(bpffs, FamilyFilter { ipv4: false, ipv6: true })?,
        map::SOCKETS4 => sockets::<V4>(bpffs)?,
        map::SOCKETS6 => sockets::<V6>(bpffs)?,
        map::AFFINITY4 => affinities::<V4>(bpffs)?,
        map::AFFINITY6 => affinities::<V6>(bpffs)?,
        map::FRAGMENTS4 => fragments::<V4>(bpffs)?,
        map::FRAGMENTS6 => fragments::<V6>(bpffs)?,
        map::DROPS => {
            let drops = observed::drops(bpffs)?.into_iter();
            drops.map(|(reason, packets)| EntryDump { key: json!(reason.name()), value: json!(packets) }).collect()
        }
        map::FLOW_PAIRS => flow_pairs(spec, bpffs)?,
        map::WAYS4 => ways::<V4>(spec, bpffs)?,
        map::WAYS6 => ways::<V6>(spec, bpffs)?,
        map::MAP_OPS => {
            let counters = per_cpu::<u64>(spec, bpffs)?.into_iter().enumerate();
            counters
                .map(|(index, values)| EntryDump { key: json!(index), value: json!(values.iter().sum::<u64>()) })
                .collect()
        }
        _ => desired(spec, &read::tables(bpffs)?),
    })
}

/// The entries of a map that the agent writes.
fn desired(spec: &MapSpec, tables: &Tables) -> Vec<EntryDump> {
    let entry = |key: Value, value: Value| EntryDump { key, value };
    let family = if spec.name.ends_with(<V6 as Family>::SUFFIX) { IpFamily::V6 } else { IpFamily::V4 };
    match *spec {
        map::FRONTENDS4 | map::FRONTENDS6 => tables
            .frontends
            .iter()
            .filter(|(frontend, _)| IpFamily::of(frontend.addr) == family)
            .map(|(frontend, value)| entry(frontend_key(frontend), frontend_value(value)))
            .collect(),
        map::SLOTS => tables.slots.iter().map(|(slot, id)| entry(json!(slot), json!(id.number))).collect(),
        map::BACKENDS4 | map::BACKENDS6 => tables
            .backends
            .iter()
            .filter(|(id, _)| id.family == family)
            .map(|(id, row)| {
                let value = json!({
                    "addr": row.addr.to_string(), "protocol": row.protocol.name(), "flags": row.flags,
                    "service": row.service, "generation": row.generation,
                });
                entry(json!(id.number), value)
            })
            .collect(),
        map::SERVICE_NAMES => tables.service_names.iter().map(|(id, name)| entry(json!(id), json!(name))).collect(),
        map::LOCAL_ADDRS4 | map::LOCAL_ADDRS6 => tables
            .local_addrs
            .iter()
            .filter(|(addr, _)| IpFamily::of(**addr) == family)
            .map(|(addr, bits)| entry(json!(addr), json!(local_addr_words(*bits))))
            .collect(),
        map::SNAT_ADDRS4 | map::SNAT_ADDRS6 => tables
            .snat_addrs
            .iter()
            .filter(|(key, _)| key.family == family)
            .map(|(key, addr)| entry(json!(key.interface), json!(addr)))
            .collect(),
        map::SOURCE_RANGES4 | map::SOURCE_RANGES6 => tables
            .source_ranges
            .iter()
            .filter(|row| IpFamily::of(row.range.ip()) == family)
            .map(|row| entry(json!({"service": row.service, "range": row.range.to_string()}), json!("admitted")))
            .collect(),
        map::CIDRS4 | map::CIDRS6 => tables
            .cidrs
            .iter()
            .filter(|(range, _)| IpFamily::of(range.ip()) == family)
            .map(|(range, bits)| entry(json!(range.to_string()), json!(cidr_words(*bits))))
            .collect(),
        map::DEVICES => tables
            .devices
            .iter()
            .map(|(index, device)| {
                let value = json!({"routed_as": device.routed_as, "flags": device_words(device.flags)});
                entry(json!(index), value)
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn frontend_key(frontend: &FrontendAddr) -> Value {
    if !frontend.is_served() {
        return json!({"addr": frontend.addr, "scope": "other ports"});
    }
    json!({
        "addr": SocketAddr::new(frontend.addr, frontend.port).to_string(),
        "protocol": frontend.protocol_name(),
        "scope": if frontend.scope == Scope::NodePort { "node_port" } else { "address" },
    })
}

fn frontend_value(value: &Frontend) -> Value {
    let range = |range: SlotRange| format!("{}+{}", range.first, range.count);
    json!({
        "service": value.service, "inside": range(value.inside), "outside": range(value.outside),
        "affinity_seconds": value.affinity_seconds,
        "kind": FrontendKind::from_number(value.kind).map_or("unknown", FrontendKind::name), "flags": value.flags,
    })
}

fn flows(bpffs: &Path, family: FamilyFilter) -> anyhow::Result<Vec<EntryDump>> {
    let now = read::now()?;
    let tables = read::tables(bpffs)?;
    let entries = read::entries(bpffs, family)?;
    Ok(entries
        .iter()
        .map(|entry| {
            let line = EntryLine::new(entry, &tables, now);
            EntryDump {
                key: json!({"source": line.source, "destination": line.destination, "protocol": line.protocol}),
                value: json!({
                    "source": line.translated_source, "destination": line.translated_destination,
                    "direction": line.direction, "side": line.side, "next": line.next, "state": entry.state.0,
                    "deadline": entry.deadline.0, "packets": line.packets, "bytes": line.bytes,
                    "backend": line.backend_id, "generation": line.generation, "service": line.service_id,
                }),
            }
        })
        .collect())
}

fn sockets<F: ObservedFamily>(bpffs: &Path) -> anyhow::Result<Vec<EntryDump>>
where
    SocketKey<F::Addr>: Pod,
    SocketOrigin<F::Addr>: Pod,
{
    let map = observed::sockets::<F>(bpffs, Access::ReadOnly)?;
    map.iter()
        .map(|entry| {
            let (key, origin) = entry?;
            let [low, high] = key.cookie;
            Ok(EntryDump {
                key: json!({
                    "cookie": u64::from(low) | u64::from(high) << 32,
                    "backend": SocketAddr::new(key.addr.to_ip(), key.port.get()).to_string(),
                    "protocol": protocol_name(key.protocol),
                }),
                value: json!({
                    "frontend": SocketAddr::new(origin.addr.to_ip(), origin.port.get()).to_string(),
                    "backend": origin.backend, "generation": origin.generation, "service": origin.service,
                }),
            })
        })
        .collect()
}

fn affinities<F: ObservedFamily>(bpffs: &Path) -> anyhow::Result<Vec<EntryDump>>
where
    AffinityKey<F::Addr>: Pod,
{
    let map = observed::affinity::<F>(bpffs, Access::ReadOnly)?;
    map.iter().map(|entry| Ok(entry.map(|(key, value)| affinity(&key, &value))?)).collect()
}

fn affinity<A: Addr>(key: &AffinityKey<A>, value: &Affinity) -> EntryDump {
    let client = key.client.to_ip();
    // The node's own processes share one memory.
    let client = if client.is_unspecified() { json!("this node") } else { json!(client) };
    EntryDump {
        key: json!({"client": client, "service": key.service}),
        value: json!({"backend": value.backend, "generation": value.generation, "last_used": value.last_used}),
    }
}

fn fragments<F: ObservedFamily>(bpffs: &Path) -> anyhow::Result<Vec<EntryDump>>
where
    FragmentKey<F::Addr>: Pod,
{
    let map = observed::fragments::<F>(bpffs, Access::ReadOnly)?;
    map.iter().map(|entry| Ok(entry.map(|(key, value)| fragment(&key, &value))?)).collect()
}

fn fragment<A: Addr>(key: &FragmentKey<A>, value: &FragmentPorts) -> EntryDump {
    let protocol = |number: u32| u8::try_from(number).map_or_else(|_| number.to_string(), protocol_name);
    let mut identified_by = json!({"source": key.src.to_ip(), "destination": key.dst.to_ip(), "id": key.id});
    if key.protocol != 0 {
        identified_by["protocol"] = json!(protocol(key.protocol));
    }
    EntryDump {
        key: identified_by,
        value: json!({
            "protocol": protocol(value.protocol), "source_port": value.src_port.get(),
            "destination_port": value.dst_port.get(), "seen": value.seen,
        }),
    }
}

/// The ways that have been looked up, each of the processors having its own.
fn ways<F: Family>(spec: &MapSpec, bpffs: &Path) -> anyhow::Result<Vec<EntryDump>>
where
    PairWay<F::Addr>: Pod,
{
    let places = per_cpu::<PairWay<F::Addr>>(spec, bpffs)?;
    let of_processors = places.iter().flat_map(|values| values.iter().enumerate());
    Ok(of_processors.filter(|(_, pair)| pair.way.checked != 0).map(|(cpu, pair)| way(cpu, pair)).collect())
}

fn way<A: Addr>(cpu: usize, pair: &PairWay<A>) -> EntryDump {
    let way = &pair.way;
    EntryDump {
        key: json!({"source": pair.src.to_ip(), "destination": pair.dst.to_ip(), "from_interface": way.ingress, "cpu": cpu}),
        value: json!({"exit": Exit::name(way.exit), "interface": way.interface, "mtu": way.mtu, "checked": way.checked}),
    }
}

/// The words of which bits are set, and how many are: addresses cannot be told from them.
fn flow_pairs(spec: &MapSpec, bpffs: &Path) -> anyhow::Result<Vec<EntryDump>> {
    let map = pinned::open(&pinned::directory(bpffs), spec, Access::ReadOnly)?;
    let map = Array::<_, u32>::try_from(Map::Array(map)).context(spec.name)?;
    let words = map.iter().collect::<Result<Vec<u32>, _>>().context(spec.name)?;
    let entry =
        |(index, bits): (usize, &u32)| EntryDump { key: json!(index), value: json!({"bits": bits.count_ones()}) };
    Ok(words.iter().enumerate().filter(|(_, bits)| **bits != 0).map(entry).collect())
}

/// The values of a per-CPU array, place by place.
fn per_cpu<V: Pod>(spec: &MapSpec, bpffs: &Path) -> anyhow::Result<Vec<PerCpuValues<V>>> {
    let map = pinned::open(&pinned::directory(bpffs), spec, Access::ReadOnly)?;
    let map = PerCpuArray::<_, V>::try_from(Map::PerCpuArray(map)).context(spec.name)?;
    map.iter().map(|values| values.context(spec.name)).collect()
}

/// A key or value in a cell.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use dataplane_common::BePort;

    use super::*;
    use crate::cli::fixture;

    #[track_caller]
    fn check(spec: &MapSpec, expected: &str) {
        let output = Output { no_headers: true, ..Output::default() };
        assert_eq!(output.table(&desired(spec, &fixture::tables()), false), expected);
    }

    #[test]
    fn entries_are_shown_field_by_field() {
        check(
            &map::FRONTENDS6,
            "addr=[fd00:96::1]:80 protocol=TCP scope=address  \
             affinity_seconds=0 flags=0 inside=16+1 kind=ClusterIP outside=16+1 service=7\n",
        );
        check(&map::SLOTS, "8   1\n9   2\n10  3\n16  1\n");
        check(&map::BACKENDS6, "1  addr=[fd00::5]:8080 flags=1 generation=1 protocol=TCP service=7\n");
        check(&map::SERVICE_NAMES, "7  default/web:http\n9  kube-system/dns\n");
        check(&map::LOCAL_ADDRS4, "");
    }

    #[test]
    fn rows_about_clients_and_prefixes_are_shown_in_words() {
        let mut tables = Tables::default();
        let dns = *fixture::tables().frontends.values().next().unwrap();
        let silent = Frontend { inside: SlotRange::default(), outside: SlotRange::default(), ..dns };
        tables.frontends.insert(FrontendAddr::other_ports("10.96.0.1".parse().unwrap()), silent);
        tables.cidrs.insert("10.96.0.0/12".parse().unwrap(), map::cidr::SERVICE | map::cidr::POD);
        let range = "2001:db8::/32".parse().unwrap();
        tables.source_ranges.insert(crate::tables::ClientRange { service: 7, range });
        let shown = |spec| {
            let output = Output { no_headers: true, ..Output::default() };
            output.table(&desired(spec, &tables), false)
        };
        assert!(
            shown(&map::FRONTENDS4).starts_with("addr=10.96.0.1 scope=other ports  "),
            "{}",
            shown(&map::FRONTENDS4)
        );
        assert_eq!(shown(&map::CIDRS4), "10.96.0.0/12  services,pods\n");
        assert_eq!(shown(&map::SOURCE_RANGES6), "range=2001:db8::/32 service=7  admitted\n");
    }

    #[test]
    fn clients_and_fragments_are_shown_field_by_field() {
        let value = Affinity { backend: 3, generation: 1, last_used: 40 };
        let of_node = affinity(&AffinityKey { client: [0_u32], service: 7 }, &value);
        assert_eq!(of_node.cells(), ["client=this node service=7", "backend=3 generation=1 last_used=40"]);
        let client = [u32::from_ne_bytes([203, 0, 113, 9])];
        assert_eq!(affinity(&AffinityKey { client, service: 7 }, &value).cells()[0], "client=203.0.113.9 service=7");
        let key = FragmentKey { src: client, dst: [u32::from_ne_bytes([10, 96, 0, 1])], id: 5, protocol: 17 };
        let ports = FragmentPorts { src_port: BePort::new(4000), dst_port: BePort::new(53), seen: 40, protocol: 17 };
        let value = "destination_port=53 protocol=UDP seen=40 source_port=4000";
        let expected = ["destination=10.96.0.1 id=5 protocol=UDP source=203.0.113.9", value];
        assert_eq!(fragment(&key, &ports).cells(), expected);
        let any_protocol = FragmentKey { protocol: 0, ..key };
        let expected = ["destination=10.96.0.1 id=5 source=203.0.113.9", value];
        assert_eq!(fragment(&any_protocol, &ports).cells(), expected);
    }
}
