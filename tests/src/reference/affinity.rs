//! Which backend a client stays with (P27).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    World,
    rules::{Backends, Client, Fate, Owner},
};
use crate::topology::IpVersion;

/// Where each client of a service port with affinity was sent to last, and when.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// In seconds.
    now: u64,
    known: BTreeMap<(IpAddr, Owner), (SocketAddr, u64)>,
}

impl Memory {
    /// What may become of a client's first packet: of the backends that it may reach, it stays with the one it had, until it
    /// has not come for too long. That the set no longer has that backend is also the end.
    pub fn fate(&self, world: &World, client: Client, fate: Fate, owner: Option<&Owner>) -> Fate {
        let (Fate::Sent(backends), Some(owner)) = (&fate, owner) else { return fate };
        let (Some(timeout), Some((backend, then))) =
            (world.affinity(owner), self.known.get(&(client.ip(), owner.clone())))
        else {
            return fate;
        };
        match backends.get(backend) {
            Some(arrival) if self.now - then <= u64::from(timeout) => {
                Fate::Sent(Backends::from([(*backend, *arrival)]))
            }
            _ => fate,
        }
    }

    /// Notes that the first packet of a flow has reached `backend`.
    pub fn note(&mut self, world: &World, client: Client, owner: &Owner, backend: SocketAddr) {
        if world.affinity(owner).is_some() {
            self.known.insert((client.ip(), owner.clone()), (backend, self.now));
        }
    }

    /// Notes that the first packet of a flow was lost on its way to nobody knows whom.
    pub fn lose(&mut self, client: Client, owner: &Owner) {
        self.known.remove(&(client.ip(), owner.clone()));
    }

    /// Forgets the backends that are gone, even if they come back, and the clients of ports that have no affinity any more.
    pub fn forget(&mut self, world: &World) {
        let mut serving = BTreeMap::<(Owner, IpVersion), BTreeSet<SocketAddr>>::new();
        self.known.retain(|(client, owner), (backend, _)| {
            let version = IpVersion::of(client.to_owned());
            let set = serving.entry((owner.clone(), version)).or_insert_with(|| world.serving(owner, version));
            world.affinity(owner).is_some() && set.contains(backend)
        });
    }

    /// Lets time pass.
    pub fn wait(&mut self, seconds: u64) {
        self.now += seconds;
    }
}

impl World {
    /// For how many seconds the clients of `owner` stay with their backends.
    pub fn affinity(&self, owner: &Owner) -> Option<u32> {
        self.services.get(&owner.service)?.affinity
    }
}
