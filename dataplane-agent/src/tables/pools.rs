//! What all services share: ids of services and backends, and slots.

use std::collections::BTreeMap;

use dataplane_common::map;

use super::{
    IpFamily,
    ids::{BackendIds, ServiceIds},
    slots::SlotPool,
};
use crate::tables::{BackendId, BackendRow};

/// A map has no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map {map} is full")]
pub struct NoRoom {
    /// The map.
    pub map: &'static str,
}

/// Capacities of the arrays that are handed out piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Of `slots`.
    pub slots: u32,
    /// Of `backends4`.
    pub backends4: u32,
    /// Of `backends6`.
    pub backends6: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self { slots: map::SLOTS.entries, backends4: map::BACKENDS4.entries, backends6: map::BACKENDS6.entries }
    }
}

/// What is still to be had.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Service ids.
    pub services: ServiceIds,
    /// Slots.
    pub slots: SlotPool,
    backends4: BackendIds,
    backends6: BackendIds,
}

impl Pools {
    /// What is left beside the service ids `services`, the backends `used` and those that were used (`free`).
    ///
    /// Slots in use are reserved afterwards, by their owners.
    pub fn new(
        capacities: Capacities,
        services: impl IntoIterator<Item = u32>,
        used: &BTreeMap<BackendId, BackendRow>,
        free: &BTreeMap<BackendId, u32>,
    ) -> Self {
        let used: BTreeMap<_, _> = used.iter().map(|(id, row)| (*id, row.generation)).collect();
        let of = |rows: &BTreeMap<BackendId, u32>, family| -> BTreeMap<u32, u32> {
            rows.iter().filter(|(id, _)| id.family == family).map(|(id, generation)| (id.number, *generation)).collect()
        };
        let ids = |entries, family| BackendIds::new(entries, &of(&used, family), &of(free, family));
        Self {
            services: ServiceIds::new(services),
            slots: SlotPool::new(capacities.slots),
            backends4: ids(capacities.backends4, IpFamily::V4),
            backends6: ids(capacities.backends6, IpFamily::V6),
        }
    }

    /// The backend ids of `family`.
    pub fn backends(&mut self, family: IpFamily) -> &mut BackendIds {
        match family {
            IpFamily::V4 => &mut self.backends4,
            IpFamily::V6 => &mut self.backends6,
        }
    }

    /// A backend id of `family` and the generation to write it with.
    pub fn allocate_backend(&mut self, family: IpFamily) -> Result<(u32, u32), NoRoom> {
        let map = match family {
            IpFamily::V4 => map::BACKENDS4.name,
            IpFamily::V6 => map::BACKENDS6.name,
        };
        self.backends(family).allocate().ok_or(NoRoom { map })
    }
}
