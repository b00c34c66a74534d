//! What is installed, service by service: plans the way to what is wanted, and takes in how that went.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    claims::{Claim, Claims, Conflict},
    round::{Group, Report, Round, Unit, union},
};
use crate::{
    maps::{MapError, Outcome, Snapshot},
    model::{
        ObjectName,
        cluster::{Cluster, Dirty},
        service::ServicePortName,
    },
    plan::Op,
    tables::{
        self, FrontendAddr, Tables, counted_ranges,
        layout::Port,
        packed::Packed,
        pools::{NoRoom, Pools},
        service::WantedPort,
        slots::{Block, SlotPool},
    },
};

/// What the maps hold, who owns which part of it, and what is left to hand out.
#[derive(Clone, Debug)]
pub struct Installed {
    services: BTreeMap<ObjectName, Ports>,
    addresses: Tables,
    /// Whose rows an installed frontend is among.
    owners: BTreeMap<FrontendAddr, ObjectName>,
    pools: Pools,
    claims: Claims,
    totals: Totals,
}

/// The ports of one service by name, boxed since the tree has room for more than the one that most have.
type Ports = BTreeMap<String, Box<Port>>;

/// Counts of installed rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Services with at least one port.
    pub services: usize,
    /// Frontends.
    pub frontends: usize,
    /// Backends.
    pub backends: usize,
}

impl Installed {
    /// Takes over what `snapshot` says is installed.
    ///
    /// Rows that no service name explains become ports of a nameless service, which no cluster has: the first round
    /// removes them, like those of any service that went while no agent was there.
    pub fn new(snapshot: Snapshot) -> Self {
        let Snapshot { tables, free, capacities } = snapshot;
        let parts = tables.split();
        let mut this = Self {
            pools: Pools::new(capacities, parts.keys().copied(), &tables.backends, &free),
            services: BTreeMap::new(),
            addresses: Tables {
                local_addrs: tables.local_addrs,
                snat_addrs: tables.snat_addrs,
                cidrs: tables.cidrs,
                devices: tables.devices,
                ..Tables::default()
            },
            owners: BTreeMap::new(),
            claims: Claims::default(),
            totals: Totals::default(),
        };
        for (id, rows) in parts {
            let name = rows.service_names.get(&id).and_then(|text| text.parse().ok());
            let ServicePortName { service, port } = name
                .filter(|name| !this.has_port(name))
                .unwrap_or_else(|| ServicePortName { service: ObjectName::new("", ""), port: id.to_string() });
            let adopted = this.adopt(id, rows);
            this.services.entry(service).or_default().insert(port, Box::new(adopted));
        }
        let names: Vec<_> = this.services.keys().cloned().collect();
        names.iter().for_each(|name| this.count_in(name));
        this
    }

    fn has_port(&self, name: &ServicePortName) -> bool {
        self.services.get(&name.service).is_some_and(|ports| ports.contains_key(&name.port))
    }

    fn adopt(&mut self, id: u32, rows: Tables) -> Port {
        let mut blocks = BTreeMap::<u32, Block>::new();
        for range in rows.frontends.values().flat_map(counted_ranges) {
            let order = SlotPool::order_for(range.count);
            let block = blocks.entry(range.first).or_insert(Block { first: range.first, order });
            block.order = order.max(block.order);
        }
        // A range that cannot be reserved is damaged or overlaps another: its set gets a new one.
        blocks.retain(|_, block| self.pools.slots.reserve(*block));
        let backend_ids = rows.backends.keys().copied().collect();
        Port { id, rows: rows.into(), blocks, backend_ids }
    }

    /// Names of the services that are installed, also of those that the cluster no longer has.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// Counts of installed rows.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Frontends that several services claim.
    pub fn conflicts(&self) -> &BTreeMap<FrontendAddr, Conflict> {
        self.claims.conflicts()
    }

    /// Everything that is installed, put together; for audits and tests, since its cost grows with the cluster.
    pub fn tables(&self) -> Tables {
        let mut all = union(self.services.values().flat_map(BTreeMap::values).map(|port| port.rows.tables()));
        all.extend(self.addresses.clone());
        all
    }

    /// Plans how what is `dirty` comes to be as `cluster` wants it. Each plan must be followed by [`Self::commit`].
    ///
    /// When there is `more` to come, services that leave a frontend are put off and returned: another one that has not been
    /// looked at may want it, and between two rounds nobody would have it.
    pub fn plan(&mut self, cluster: &Cluster, dirty: &Dirty, more: bool) -> (Round, BTreeSet<ObjectName>) {
        let mut wanted = BTreeMap::<ObjectName, Vec<WantedPort>>::new();
        let mut put_off = BTreeSet::new();
        let mut needed = BTreeSet::new();
        let mut queue: Vec<ObjectName> = dirty.services.iter().cloned().collect();
        while let Some(name) = queue.pop() {
            if wanted.contains_key(&name) {
                continue;
            }
            let ports = cluster.service(&name).map_or_else(Vec::new, |service| {
                tables::service::compile(&name, service, cluster.slices(&name), cluster.place())
            });
            if more && !needed.contains(&name) && self.leaves_a_frontend(&name, &ports) {
                put_off.insert(name);
                continue;
            }
            put_off.remove(&name);
            let claims: BTreeSet<Claim> = ports
                .iter()
                .map(|port| (port, Arc::new(port.name.clone())))
                .flat_map(|(port, name)| port.frontends.keys().map(move |addr| (*addr, Arc::clone(&name))))
                .collect();
            let others: Vec<_> = claims.iter().filter_map(|(addr, _)| self.owners.get(addr)).cloned().collect();
            for other in others.into_iter().chain(self.claims.replace(&name, &claims)) {
                needed.insert(other.clone());
                queue.push(other);
            }
            wanted.insert(name, ports);
        }
        let mut groups = Vec::new();
        let mut refused = BTreeMap::new();
        for (name, ports) in wanted {
            groups.push(match self.lay_out(&name, &ports) {
                Ok(group) => group,
                Err(error) => {
                    // What it took until then is returned by the commit.
                    refused.insert(Unit::Service(name.clone()), error);
                    self.unchanged(name)
                }
            });
        }
        if dirty.addresses {
            let after = tables::node::compile(cluster);
            groups.push(Group { before: self.addresses.clone(), after, addresses: true, ..Group::default() });
        }
        (Round::new(groups, refused), put_off)
    }

    fn leaves_a_frontend(&self, name: &ObjectName, wanted: &[WantedPort]) -> bool {
        let installed = self.services.get(name).into_iter().flat_map(BTreeMap::values);
        let mut frontends = installed.flat_map(|port| port.rows.frontends());
        frontends.any(|(addr, _)| !wanted.iter().any(|port| port.frontends.contains_key(addr)))
    }

    /// The rows of one service as they are and as they should be.
    fn lay_out(&mut self, name: &ObjectName, wanted: &[WantedPort]) -> Result<Group, NoRoom> {
        let ports = self.services.entry(name.clone()).or_default();
        let before = union(ports.values().map(|port| port.rows.tables()));
        let mut after: BTreeMap<_, _> = ports.keys().map(|port| (port.clone(), Tables::default())).collect();
        for port in wanted {
            let frontends = port.frontends.iter().filter(|(addr, _)| self.claims.wins(addr, &port.name));
            let frontends = frontends.map(|(addr, frontend)| (*addr, *frontend)).collect();
            let installed = ports
                .entry(port.name.port.clone())
                .or_insert_with(|| Box::new(Port { id: self.pools.services.allocate(), ..Port::default() }));
            let rows = installed.lay_out(port, &frontends, &mut self.pools)?;
            after.insert(port.name.port.clone(), rows);
        }
        Ok(Group::of_service(name.clone(), before, after))
    }

    /// The group of a service that stays as it is, except for frontends that another one may now have.
    fn unchanged(&self, name: ObjectName) -> Group {
        let ports = self.services.get(&name).into_iter().flatten();
        let mut rows: BTreeMap<_, _> = ports.map(|(port, installed)| (port.clone(), installed.rows.tables())).collect();
        let before = union(rows.values().cloned());
        for (port, rows) in &mut rows {
            let port = ServicePortName { service: name.clone(), port: port.clone() };
            rows.frontends.retain(|addr, _| self.claims.wins(addr, &port));
        }
        Group::of_service(name, before, rows)
    }

    /// Takes in what became of `round`.
    pub fn commit(&mut self, round: Round, mut outcome: Outcome) -> Report {
        let mut report = Report::default();
        let done = round.plan.steps.iter().zip(&outcome.done).filter(|(_, done)| **done).map(|(step, _)| step);
        for step in done.clone() {
            if let Op::PutBackend(id, row) | Op::KillBackend(id, row) = &step.op {
                self.pools.backends(id.family).written(id.number, row.generation);
            }
            if let Op::KillBackend(id, row) = &step.op {
                report.gone.push((*id, *row));
            }
        }
        let mut rows_of_failed = BTreeMap::<usize, Vec<&Op>>::new();
        for step in done.filter(|step| outcome.failed.contains_key(&step.group)) {
            rows_of_failed.entry(step.group).or_default().push(&step.op);
        }
        for (index, group) in round.groups.into_iter().enumerate() {
            let error = outcome.failed.remove(&index);
            for unit in group.units() {
                let refused = round.refused.get(&unit).map(ToString::to_string);
                match refused.or_else(|| error.as_ref().map(MapError::in_full)) {
                    Some(text) => drop(report.failed.insert(unit, text)),
                    None => drop(report.succeeded.insert(unit)),
                }
            }
            if error.is_none() {
                self.install(group, true);
            } else {
                let done = rows_of_failed.remove(&index).unwrap_or_default();
                self.install(group.after_only(done.into_iter()), false);
            }
        }
        report
    }

    /// Notes what is installed now, and returns what is no longer used.
    fn install(&mut self, group: Group, complete: bool) {
        if group.addresses {
            self.addresses = group.after;
            return;
        }
        group.services.keys().for_each(|name| self.count_out(name));
        let mut parts = if complete { BTreeMap::new() } else { group.after.split() };
        for (name, mut after) in group.services {
            let Some(ports) = self.services.get_mut(&name) else { continue };
            for (port_name, port) in &mut *ports {
                let rows = if complete { after.remove(port_name) } else { parts.remove(&port.id) };
                port.rows = rows.unwrap_or_default().into();
                port.trim(&mut self.pools);
            }
            ports.retain(|_, port| !port.rows.is_empty());
            if ports.is_empty() {
                self.services.remove(&name);
            }
            self.count_in(&name);
        }
    }

    fn count_in(&mut self, name: &ObjectName) {
        for port in self.services.get(name).into_iter().flat_map(BTreeMap::values) {
            self.owners.extend(port.rows.frontends().map(|(addr, _)| (*addr, name.clone())));
        }
        let Totals { services, frontends, backends } = self.totals_of(name);
        self.totals.services += services;
        self.totals.frontends += frontends;
        self.totals.backends += backends;
    }

    fn count_out(&mut self, name: &ObjectName) {
        for port in self.services.get(name).into_iter().flat_map(BTreeMap::values) {
            port.rows.frontends().for_each(|(addr, _)| drop(self.owners.remove(addr)));
        }
        let Totals { services, frontends, backends } = self.totals_of(name);
        self.totals.services -= services;
        self.totals.frontends -= frontends;
        self.totals.backends -= backends;
    }

    fn totals_of(&self, name: &ObjectName) -> Totals {
        let Some(ports) = self.services.get(name) else { return Totals::default() };
        let rows = || ports.values().map(|port| &port.rows);
        Totals {
            services: usize::from(rows().any(|rows| !rows.is_empty())),
            frontends: rows().map(|rows| rows.frontends().filter(|(addr, _)| addr.is_served()).count()).sum(),
            backends: rows().map(Packed::backends).sum(),
        }
    }
}
