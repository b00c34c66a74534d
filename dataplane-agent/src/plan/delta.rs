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
