//! Random histories end where a start from scratch with the same objects ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use proptest::{prelude::*, sample::subsequence};

use super::*;
use crate::tables::{Tables, counted_slots};

/// What `tables` mean to a packet: ids, generations and the order of slots are left out.
pub(super) fn meaning(tables: &Tables) -> BTreeMap<String, BTreeSet<String>> {
    let mut meaning = BTreeMap::<String, BTreeSet<String>>::new();
    let service = |id: u32| tables.service_names.get(&id).cloned().unwrap_or_else(|| format!("nameless {id}"));
    for id in tables.service_names.keys() {
        meaning.entry(service(*id)).or_default();
    }
    for row in tables.backends.values() {
        let text = format!("backend {}/{} {}", row.addr, row.protocol, row.flags);
        meaning.entry(service(row.service)).or_default().insert(text);
    }
    for (addr, frontend) in &tables.frontends {
        let set = |range| -> BTreeSet<SocketAddr> {
            let only = dataplane_common::Frontend { inside: range, outside: range, ..*frontend };
            counted_slots(&only).map(|index| tables.backends[&tables.slots[&index]].addr).collect()
        };
        let (inside, outside) = (set(frontend.inside), set(frontend.outside));
        assert_eq!((inside.len(), outside.len()), (frontend.inside.count as usize, frontend.outside.count as usize));
        let about = (frontend.kind, frontend.flags, frontend.affinity_seconds);
        let text = format!("frontend {addr} {:?} {about:?} {inside:?} {outside:?}", addr.scope);
        meaning.entry(service(frontend.service)).or_default().insert(text);
    }
    for row in &tables.source_ranges {
        meaning.entry(service(row.service)).or_default().insert(format!("clients {}", row.range));
    }
    meaning.insert("addresses".to_owned(), tables.local_addrs.keys().map(ToString::to_string).collect());
    meaning
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    Round,
    Restart,
    /// A round in which operations that start like this fail.
    Failure(&'static str),
}

fn services() -> impl Strategy<Value = Change> {
    // Few addresses, so that services collide.
    let ips = subsequence(vec!["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00:96::1", "fd00:96::2"], 0..4);
    let more = subsequence(vec!["10.96.0.1", "10.96.0.2", "203.0.113.1", "2001:db8::1"], 0..3);
    let policy = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let of = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    let node_port = prop::option::of(prop_oneof![Just(30001), Just(30002)]);
    let ranges = subsequence(vec!["192.0.2.0/24", "198.51.100.7/24", "2001:db8::/32"], 0..3);
    let rest = (any::<bool>(), any::<bool>(), any::<bool>(), ranges);
    (of, ips, more, policy(), policy(), node_port, rest).prop_map(
        |(of, ips, more, internal, external, node_port, (exists, udp, sticky, ranges))| {
            let mut service = service(&ips);
            service.load_balancer_ips = more.iter().map(|ip| ip.parse().unwrap()).collect();
            service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            service.internal_policy = internal;
            service.external_policy = external;
            service.affinity = sticky.then_some(Duration::from_secs(60));
            service.ports[0].node_port = node_port.map(port);
            if udp {
                service.ports.push(ServicePort {
                    name: "dns".to_owned(),
                    protocol: Protocol::Udp,
                    port: port(53),
                    node_port: None,
                });
            }
            Change::Service(name(of), exists.then_some(service))
        },
    )
}

fn slices() -> impl Strategy<Value = Change> {
    let all: Vec<u8> = (1..40).collect();
    let of = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    let slice_name = prop_oneof![Just("s1"), Just("s2"), Just("s3"), Just("s4"), Just("s5")];
    let endpoint = |host: u8, kind: u8| {
        let mark = ["", "", "@", "!", "!@"][kind as usize % 5];
        if host.is_multiple_of(3) { format!("{mark}fd00::{host}") } else { format!("{mark}10.0.0.{host}") }
    };
    let endpoints = (subsequence(all, 0..20), prop::collection::vec(any::<u8>(), 20));
    (of, slice_name, endpoints, any::<bool>()).prop_map(move |(of, slice_name, (hosts, kinds), udp)| {
        let words: Vec<_> = hosts.iter().zip(kinds).map(|(host, kind)| endpoint(*host, kind)).collect();
        let mut slice = slice(of, &words.join(" "));
        if udp {
            slice.ports.push(EndpointPort { name: "dns".to_owned(), protocol: Protocol::Udp, port: port(5353) });
        }
        Change::EndpointSlice(name(slice_name), (!words.is_empty()).then_some(slice))
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let local = subsequence(vec!["192.0.2.1", "192.0.2.2", "2001:db8::1"], 0..4);
    let failure = prop_oneof![
        Just("+ frontend 10.96.0.1"),
        Just("+ frontend 10.96"),
        Just("+ frontend"),
        Just("- frontend"),
        Just("+ slot 4"),
        Just("+ backend 4.7"),
        Just("- backend"),
        Just("+ name"),
        Just("- name"),
        Just("+ local"),
        Just("+ clients"),
        Just("- clients"),
    ];
    let step = prop_oneof![
        4 => services().prop_map(Step::Change),
        6 => slices().prop_map(Step::Change),
        1 => local.prop_map(|local| Step::Change(addresses(&local))),
        3 => Just(Step::Round),
        1 => Just(Step::Restart),
        1 => failure.prop_map(Step::Failure),
    ];
    prop::collection::vec(step, 1..40)
}

/// The last state of every object among `steps`.
fn objects(steps: &[Step]) -> Vec<Change> {
    let mut last = BTreeMap::new();
    for step in steps {
        if let Step::Change(change) = step {
            let key = match change {
                Change::Service(name, _) => format!("service {name}"),
                Change::EndpointSlice(name, _) => format!("slice {name}"),
                _ => "addresses".to_owned(),
            };
            last.insert(key, change.clone());
        }
    }
    last.into_values().collect()
}

fn retry_all(agent: &mut Agent) {
    agent.core.retry(Unit::Addresses);
    ["a", "b", "c", "d"].into_iter().for_each(|of| agent.core.retry(unit(of)));
    let report = agent.round();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_where_a_start_from_scratch_ends(steps in steps()) {
        let mut agent = Agent::new();
        for (index, step) in steps.iter().enumerate() {
            match step {
                Step::Change(change) => agent.core.take(change.clone()),
                Step::Round => {
                    let report = agent.round();
                    prop_assert!(report.failed.is_empty());
                }
                Step::Failure(what) => {
                    agent.maps.refuse = vec![(*what).to_owned()];
                    let report = agent.round();
                    agent.maps.refuse.clear();
                    report.failed.into_keys().for_each(|unit| agent.core.retry(unit));
                }
                Step::Restart => {
                    agent = Agent::start(agent.maps);
                    objects(&steps[..index]).into_iter().for_each(|change| agent.core.take(change));
                    let report = agent.sync();
                    prop_assert!(report.failed.is_empty());
                }
            }
        }
        retry_all(&mut agent);
        agent.maps.take_log();
        let mut fresh = Agent::new();
        fresh.apply(objects(&steps));
        prop_assert_eq!(meaning(&agent.core.tables()), meaning(&fresh.core.tables()));
        prop_assert_eq!(agent.core.totals(), fresh.core.totals());

        // Nothing is left to do, neither now nor after a restart.
        retry_all(&mut agent);
        prop_assert_eq!(agent.maps.take_log(), "");
        let mut restarted = Agent::start(agent.maps);
        objects(&steps).into_iter().for_each(|change| restarted.core.take(change));
        restarted.sync();
        prop_assert_eq!(restarted.maps.take_log(), "");
    }
}
