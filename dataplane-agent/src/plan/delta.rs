//! Difference between what the maps should hold and what they hold.

use std::collections::BTreeMap;

use super::Op;
use crate::tables::{BackendRow, Tables};

/// The operations that turn `actual` into `desired`, in the order of their phases.
///
/// Slots that no frontend counts any more are left as they are: nobody reads them.
pub fn between(actual: &Tables, desired: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    let changed = changed(&actual.service_names, &desired.service_names);
    ops.extend(changed.map(|(id, name)| Op::PutServiceName(*id, name.clone())));
    let changed = self::changed(&actual.local_addrs, &desired.local_addrs);
    ops.extend(changed.map(|(addr, bits)| Op::PutLocalAddr(*addr, *bits)));
    let changed = self::changed(&actual.snat_addrs, &desired.snat_addrs);
    ops.extend(changed.map(|(key, addr)| Op::PutSnatAddr(*key, *addr)));
    let changed = self::changed(&actual.cidrs, &desired.cidrs);
    ops.extend(changed.map(|(range, bits)| Op::PutCidr(*range, *bits)));
    let changed = self::changed(&actual.devices, &desired.devices);
    ops.extend(changed.map(|(index, device)| Op::PutDevice(*index, *device)));
    ops.extend(desired.source_ranges.difference(&actual.source_ranges).map(|range| Op::PutSourceRange(*range)));
    let changed = self::changed(&actual.backends, &desired.backends);
    ops.extend(changed.map(|(id, row)| Op::PutBackend(*id, *row)));
    let changed = self::changed(&actual.slots, &desired.slots);
    ops.extend(changed.map(|(index, backend)| Op::PutSlot(*index, *backend)));
    let changed = self::changed(&actual.frontends, &desired.frontends);
    ops.extend(changed.map(|(addr, frontend)| Op::PutFrontend(*addr, *frontend)));

    ops.extend(gone(&actual.frontends, &desired.frontends).map(|(addr, _)| Op::DeleteFrontend(*addr)));
    ops.extend(gone(&actual.backends, &desired.backends).map(|(id, row)| Op::KillBackend(*id, killed(row))));
    ops.extend(gone(&actual.local_addrs, &desired.local_addrs).map(|(addr, _)| Op::DeleteLocalAddr(*addr)));
    ops.extend(gone(&actual.snat_addrs, &desired.snat_addrs).map(|(key, _)| Op::DeleteSnatAddr(*key)));
    ops.extend(gone(&actual.cidrs, &desired.cidrs).map(|(range, _)| Op::DeleteCidr(*range)));
    ops.extend(gone(&actual.devices, &desired.devices).map(|(index, _)| Op::DeleteDevice(*index)));
    ops.extend(actual.source_ranges.difference(&desired.source_ranges).map(|range| Op::DeleteSourceRange(*range)));
    ops.extend(gone(&actual.service_names, &desired.service_names).map(|(id, _)| Op::DeleteServiceName(*id)));
    ops
}

/// The row keeps its address, so that a dump still tells what the id was last used for.
fn killed(row: &BackendRow) -> BackendRow {
    BackendRow { flags: 0, generation: row.generation.wrapping_add(1), ..*row }
}

fn changed<'a, K: Ord, V: PartialEq>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| actual.get(key) != Some(value))
}

fn gone<'a, K: Ord, V>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    actual.iter().filter(|(key, _)| !desired.contains_key(key))
}

#[cfg(test)]
mod tests {
    use dataplane_common::{Frontend, FrontendKind, Protocol, Scope, SlotRange};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        plan::Plan,
        tables::{BackendId, FrontendAddr, IpFamily},
    };

    fn id(number: u32) -> BackendId {
        BackendId { family: IpFamily::V4, number }
    }

    /// Service 7 with one frontend whose slots, from 0 on, hold the backends `hosts`.
    fn tables(hosts: &[u8]) -> Tables {
        let mut tables = Tables::default();
        tables.service_names.insert(7, "default/web".to_owned());
        for (slot, host) in (0..).zip(hosts) {
            let addr = format!("10.0.0.{host}:80").parse().unwrap();
            let row = BackendRow { addr, protocol: Protocol::Tcp, flags: 0, service: 7, generation: 1 };
            tables.backends.insert(id(u32::from(*host)), row);
            tables.slots.insert(slot, id(u32::from(*host)));
        }
        let addr = FrontendAddr {
            addr: "10.96.0.1".parse().unwrap(),
            port: 80,
            protocol: Some(Protocol::Tcp),
            scope: Scope::Address,
        };
        let range = SlotRange { first: 0, count: hosts.len() as u32 };
        let kind = FrontendKind::ClusterIp as u8;
        let frontend =
            Frontend { service: 7, inside: range, outside: range, affinity_seconds: 0, kind, flags: 0, pad: 0 };
        tables.frontends.insert(addr, frontend);
        tables
    }

    #[track_caller]
    fn check(actual: &Tables, desired: &Tables, expected: &[&str]) {
        let plan = Plan::of([between(actual, desired)]);
        let lines: Vec<_> = plan.steps.iter().map(|step| step.op.to_string()).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn growing_writes_backend_and_slot_before_the_frontend_counts_them() {
        check(
            &tables(&[1]),
            &tables(&[1, 2]),
            &[
                "+ backend 4.2 10.0.0.2:80/TCP service 7 generation 1",
                "+ slot 1 -> 4.2",
                "+ frontend 10.96.0.1:80/TCP -> service 7 inside 0x2 outside 0x2",
            ],
        );
    }

    #[test]
    fn shrinking_fills_the_hole_and_stops_counting_before_the_backend_goes() {
        check(
            &tables(&[1, 2]),
            &tables(&[2]),
            &[
                "+ slot 0 -> 4.2",
                "+ frontend 10.96.0.1:80/TCP -> service 7 inside 0x1 outside 0x1",
                "- backend 4.1 10.0.0.1:80/TCP service 7 generation 2",
            ],
        );
    }

    #[test]
    fn a_service_is_named_first_and_forgotten_last() {
        check(
            &Tables::default(),
            &tables(&[1]),
            &[
                "+ name 7 default/web",
                "+ backend 4.1 10.0.0.1:80/TCP service 7 generation 1",
                "+ slot 0 -> 4.1",
                "+ frontend 10.96.0.1:80/TCP -> service 7 inside 0x1 outside 0x1",
            ],
        );
        check(
            &tables(&[1]),
            &Tables::default(),
            &["- frontend 10.96.0.1:80/TCP", "- backend 4.1 10.0.0.1:80/TCP service 7 generation 2", "- name 7"],
        );
    }

    fn any_tables() -> impl Strategy<Value = Tables> {
        (prop::collection::vec(0_u8..20, 0..10), prop::collection::btree_map(0_u8..6, 1_u32..4, 0..5)).prop_map(
            |(hosts, local)| {
                let mut tables = tables(&hosts);
                tables.local_addrs = local.into_iter().map(|(host, bits)| ([192, 0, 2, host].into(), bits)).collect();
                tables
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_one_to_the_other(actual in any_tables(), desired in any_tables()) {
            let mut tables = actual.clone();
            for op in between(&actual, &desired) {
                op.apply_to(&mut tables);
                for index in tables.frontends.values().flat_map(crate::tables::counted_slots) {
                    prop_assert!(tables.backends.contains_key(&tables.slots[&index]), "after {op}");
                }
            }
            tables.drop_uncounted_slots();
            prop_assert_eq!(&tables, &desired);
            prop_assert_eq!(between(&tables, &desired), vec![]);
        }
    }
}
