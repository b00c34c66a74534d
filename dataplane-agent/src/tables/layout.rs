//! Lays out one service port: gives its backends ids and its sets slots, as close as possible to what is installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use dataplane_common::{Frontend, FrontendKind, SlotRange};

use super::{
    BackendId, BackendRow, ClientRange, FrontendAddr, IpFamily, Tables, counted_ranges,
    packed::Packed,
    pools::{NoRoom, Pools},
    service::{WantedFamily, WantedFrontend, WantedPort},
    slots::Block,
};
use crate::model::service::TrafficPolicy;

/// A service port as it is installed, and what it owns of the shared arrays.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// Its id.
    pub id: u32,
    /// What the maps hold for it.
    pub rows: Packed,
    /// Its runs of slots, by their first slot.
    pub blocks: BTreeMap<u32, Block>,
    /// Its backend ids.
    pub backend_ids: BTreeSet<BackendId>,
}

impl Port {
    /// The rows that give `wanted` to the datapath; `frontends` are those that no other service claims before this one.
    ///
    /// What it takes from `pools` the port owns at once, also when this fails; [`Port::trim`] returns what is not used.
    pub fn lay_out(
        &mut self,
        wanted: &WantedPort,
        frontends: &BTreeMap<FrontendAddr, WantedFrontend>,
        pools: &mut Pools,
    ) -> Result<Tables, NoRoom> {
        let rows = self.rows.tables();
        let mut desired = Tables::default();
        desired.service_names.insert(self.id, wanted.name.to_string());
        for (family, set) in &wanted.families {
            let (family_frontends, silent): (Vec<_>, Vec<_>) = frontends
                .iter()
                .filter(|(addr, _)| IpFamily::of(addr.addr) == *family)
                .partition(|(addr, _)| addr.is_served());
            for (addr, frontend) in silent {
                desired.frontends.insert(*addr, self.empty_row(frontend));
            }
            if family_frontends.is_empty() {
                continue;
            }
            let clients = wanted.clients.iter().filter(|range| IpFamily::of(range.ip()) == *family);
            let clients: Vec<_> = clients.map(|range| ClientRange { service: self.id, range: *range }).collect();
            let checks_clients = !clients.is_empty();
            if family_frontends.iter().any(|(_, frontend)| frontend.kind == FrontendKind::LoadBalancer) {
                desired.source_ranges.extend(clients);
            }
            let ids = self.lay_out_backends(&rows, wanted, (*family, &set.backends), &mut desired, pools)?;
            let of = |policy| -> BTreeSet<BackendId> {
                set.set(policy).iter().filter_map(|addr| ids.get(addr).copied()).collect()
            };
            let ranges = self.lay_out_sets(&rows, &family_frontends, of, &mut desired, pools)?;
            for (addr, frontend) in family_frontends {
                let range = |policy| ranges.get(&policy).copied().unwrap_or_default();
                let row = Frontend {
                    inside: range(frontend.inside),
                    outside: range(frontend.outside),
                    flags: flags(set, frontend, checks_clients),
                    ..self.empty_row(frontend)
                };
                desired.frontends.insert(*addr, row);
            }
        }
        Ok(desired)
    }

    /// The row of a frontend without backends.
    fn empty_row(&self, frontend: &WantedFrontend) -> Frontend {
        Frontend {
            service: self.id,
            inside: SlotRange::default(),
            outside: SlotRange::default(),
            affinity_seconds: frontend.affinity_seconds,
            kind: frontend.kind as u8,
            flags: 0,
            pad: 0,
        }
    }

    /// Returns to `pools` what the installed rows do not use.
    pub fn trim(&mut self, pools: &mut Pools) {
        let mut counted = BTreeMap::<u32, u32>::new();
        for range in self.rows.frontends().flat_map(|(_, frontend)| counted_ranges(frontend)) {
            let count = counted.entry(range.first).or_default();
            *count = range.count.max(*count);
        }
        self.blocks.retain(|first, block| {
            let Some(count) = counted.get(first) else {
                pools.slots.release(*block);
                return false;
            };
            // Half full is the aim, so that a set that swings around a power of two stays where it is.
            if *count <= block.capacity() / 4 {
                *block = pools.slots.shrink(*block, count * 2);
            }
            true
        });
        self.backend_ids.retain(|id| {
            let used = self.rows.has_backend(*id);
            if !used {
                pools.backends(id.family).release(id.number);
            }
            used
        });
    }

    /// Backends keep their ids as long as the service port has an endpoint with their address and protocol.
    fn lay_out_backends(
        &mut self,
        rows: &Tables,
        wanted: &WantedPort,
        (family, backends): (IpFamily, &BTreeMap<SocketAddr, u8>),
        desired: &mut Tables,
        pools: &mut Pools,
    ) -> Result<BTreeMap<SocketAddr, BackendId>, NoRoom> {
        let installed = rows.backends.iter();
        let installed: BTreeMap<SocketAddr, (BackendId, u32)> = installed
            .filter(|(id, row)| id.family == family && row.protocol == wanted.protocol)
            .map(|(id, row)| (row.addr, (*id, row.generation)))
            .collect();
        let mut ids = BTreeMap::new();
        for (addr, flags) in backends {
            let (id, generation) = match installed.get(addr) {
                Some(known) => *known,
                None => {
                    let (number, generation) = pools.allocate_backend(family)?;
                    let id = BackendId { family, number };
                    self.backend_ids.insert(id);
                    (id, generation)
                }
            };
            let row =
                BackendRow { addr: *addr, protocol: wanted.protocol, flags: *flags, service: self.id, generation };
            desired.backends.insert(id, row);
            ids.insert(*addr, id);
        }
        Ok(ids)
    }

    /// Gives each set that a frontend uses its slots; two sets with the same content share them.
    fn lay_out_sets(
        &mut self,
        rows: &Tables,
        frontends: &[(&FrontendAddr, &WantedFrontend)],
        set: impl Fn(TrafficPolicy) -> BTreeSet<BackendId>,
        desired: &mut Tables,
        pools: &mut Pools,
    ) -> Result<BTreeMap<TrafficPolicy, SlotRange>, NoRoom> {
        let used: BTreeSet<_> = frontends.iter().flat_map(|(_, wanted)| [wanted.inside, wanted.outside]).collect();
        let mut placed: Vec<(BTreeSet<BackendId>, SlotRange)> = Vec::new();
        let mut ranges = BTreeMap::new();
        for policy in used {
            let ids = set(policy);
            let range = match placed.iter().find(|(other, _)| *other == ids) {
                Some((_, range)) => *range,
                None => {
                    let home = self.installed_range(rows, frontends, policy);
                    // What two sets shared stays with the first of them.
                    let home = home
                        .filter(|home| placed.iter().all(|(_, range)| range.count == 0 || range.first != home.first));
                    self.place(rows, home, &ids, desired, pools)?
                }
            };
            placed.push((ids, range));
            ranges.insert(policy, range);
        }
        Ok(ranges)
    }

    /// The range that holds the set of `policy` now, according to the frontends that use it.
    fn installed_range(
        &self,
        rows: &Tables,
        frontends: &[(&FrontendAddr, &WantedFrontend)],
        policy: TrafficPolicy,
    ) -> Option<SlotRange> {
        frontends.iter().find_map(|(addr, wanted)| {
            let row = rows.frontends.get(addr)?;
            [(wanted.inside, row.inside), (wanted.outside, row.outside)]
                .into_iter()
                .find(|(of, range)| *of == policy && range.count > 0 && self.blocks.contains_key(&range.first))
                .map(|(_, range)| range)
        })
    }

    /// Puts the set `ids` where it is now when there is room, else into a new run.
    fn place(
        &mut self,
        rows: &Tables,
        home: Option<SlotRange>,
        ids: &BTreeSet<BackendId>,
        desired: &mut Tables,
        pools: &mut Pools,
    ) -> Result<SlotRange, NoRoom> {
        let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Ok(SlotRange::default());
        }
        let current: Vec<_> = home
            .into_iter()
            .flat_map(|range| range.first..range.first.saturating_add(range.count))
            .map(|index| rows.slots.get(&index).copied())
            .collect();
        let mut block = home.and_then(|range| self.blocks.get(&range.first).copied());
        while let Some(small) = block.filter(|block| block.capacity() < count) {
            block = pools.slots.extend(small);
            if let Some(grown) = block {
                self.blocks.insert(grown.first, grown);
            }
        }
        let block = match block {
            Some(block) => block,
            None => {
                let block = pools.slots.allocate(count).ok_or(NoRoom { map: "slots" })?;
                self.blocks.insert(block.first, block);
                block
            }
        };
        desired.slots.extend((block.first..).zip(arrange(&current, ids)));
        Ok(SlotRange { first: block.first, count })
    }
}

/// The bits of a frontend's row.
fn flags(set: &WantedFamily, frontend: &WantedFrontend, checks_clients: bool) -> u8 {
    let inside_is_local = frontend.inside == TrafficPolicy::Local;
    let outside_is_local = frontend.outside == TrafficPolicy::Local;
    let checks_clients = checks_clients && frontend.kind == FrontendKind::LoadBalancer;
    let bits = [
        // Of the two, `outside` is what the Service says; `inside` may be wider.
        (outside_is_local, Frontend::LOCAL_POLICY),
        (inside_is_local, Frontend::INSIDE_IS_LOCAL),
        (outside_is_local, Frontend::OUTSIDE_IS_LOCAL),
        (set.drops(frontend.inside), Frontend::DROP_INSIDE),
        (set.drops(frontend.outside), Frontend::DROP_OUTSIDE),
        (checks_clients, Frontend::SOURCE_RANGES),
    ];
    bits.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, bit)| flags | bit)
}

/// The order of `ids` that differs least from `current`: what stays keeps its place, what comes takes the place of what
/// goes, and the last ones fill the holes that remain.
fn arrange(current: &[Option<BackendId>], ids: &BTreeSet<BackendId>) -> Vec<BackendId> {
    let mut missing = ids.clone();
    let kept: Vec<_> = current.iter().map(|id| id.filter(|id| missing.remove(id))).collect();
    let mut missing = missing.into_iter();
    let mut places: Vec<_> = kept.into_iter().map(|id| id.or_else(|| missing.next())).collect();
    places.extend(missing.map(Some));

    let mut arranged = Vec::with_capacity(ids.len());
    for index in 0..ids.len() {
        while places.len() > index && places.last() == Some(&None) {
            places.pop();
        }
        let Some(place) = places.get(index).copied() else { break };
        arranged.extend(place.or_else(|| places.pop().flatten()));
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(current: &[u32], wanted: &[u32], expected: &[u32]) {
        let id = |number: &u32| BackendId { family: IpFamily::V4, number: *number };
        let current: Vec<_> = current.iter().map(|number| (*number != 0).then(|| id(number))).collect();
        let arranged = arrange(&current, &wanted.iter().map(id).collect());
        assert_eq!(arranged, expected.iter().map(id).collect::<Vec<_>>());
    }

    #[test]
    fn slots_change_as_little_as_possible() {
        check(&[], &[1, 2], &[1, 2]);
        check(&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4]);
        check(&[1, 2, 3], &[1, 3], &[1, 3]);
        check(&[1, 2, 3, 4], &[2, 3, 4], &[4, 2, 3]);
        check(&[1, 2, 3], &[1, 4, 3], &[1, 4, 3]);
        check(&[1, 2, 3, 4], &[5], &[5]);
        check(&[1, 2, 3, 4], &[4], &[4]);
        check(&[1, 2, 3, 4], &[3], &[3]);
        check(&[1, 1, 0, 2], &[1, 2], &[1, 2]);
        check(&[1, 2], &[], &[]);
    }
}
