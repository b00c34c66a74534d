//! Who gets a frontend that several services ask for: the one whose name comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    model::{ObjectName, service::ServicePortName},
    tables::FrontendAddr,
};

/// The frontends that services ask for.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    of: BTreeMap<ObjectName, Box<[Claim]>>,
    /// In the order of names; most frontends have one claimant.
    by_addr: BTreeMap<FrontendAddr, Vec<Arc<ServicePortName>>>,
    conflicts: BTreeMap<FrontendAddr, Conflict>,
}

/// A frontend, and the service port that asks for it.
pub type Claim = (FrontendAddr, Arc<ServicePortName>);

/// A frontend that several service ports claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who has it.
    pub winner: ServicePortName,
    /// Who does not.
    pub losers: Vec<ServicePortName>,
}

impl Claims {
    /// Replaces what `service` claims. Tells which other services now have a frontend that they had not, or no longer one
    /// that they had.
    pub fn replace(&mut self, service: &ObjectName, claims: &BTreeSet<Claim>) -> BTreeSet<ObjectName> {
        let before: BTreeSet<Claim> = self.of.remove(service).into_iter().flatten().collect();
        let mut affected = BTreeSet::new();
        for (addr, port) in before.symmetric_difference(claims) {
            let claimants = self.by_addr.entry(*addr).or_default();
            let winner = claimants.first().cloned();
            match claimants.binary_search(port) {
                Ok(found) => drop(claimants.remove(found)),
                Err(place) => {
                    claimants.reserve_exact(1);
                    claimants.insert(place, Arc::clone(port));
                }
            }
            if claimants.first() != winner.as_ref() {
                let ports = winner.iter().chain(claimants.first());
                affected.extend(ports.map(|port| port.service.clone()));
            }
            self.note_conflict(*addr);
        }
        if !claims.is_empty() {
            self.of.insert(service.clone(), claims.iter().cloned().collect());
        }
        affected.remove(service);
        affected
    }

    /// Whether `port` is the one that gets `addr`.
    pub fn wins(&self, addr: &FrontendAddr, port: &ServicePortName) -> bool {
        self.by_addr.get(addr).and_then(|claimants| claimants.first()).is_some_and(|first| **first == *port)
    }

    /// The frontends that more than one service port claims.
    pub fn conflicts(&self) -> &BTreeMap<FrontendAddr, Conflict> {
        &self.conflicts
    }

    fn note_conflict(&mut self, addr: FrontendAddr) {
        let mut claimants = self.by_addr.get(&addr).into_iter().flatten().map(|port| ServicePortName::clone(port));
        let winner = claimants.next();
        let losers: Vec<_> = claimants.collect();
        match winner {
            None => {
                self.by_addr.remove(&addr);
                self.conflicts.remove(&addr);
            }
            // Of services that share a cluster IP none loses anything when another one names it.
            Some(_) if losers.is_empty() || !addr.is_served() => drop(self.conflicts.remove(&addr)),
            Some(winner) => {
                let conflict = Conflict { winner, losers };
                if self.conflicts.get(&addr) != Some(&conflict) {
                    let losers = conflict.losers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    tracing::warn!(frontend = %addr, winner = %conflict.winner, %losers, "claimed more than once");
                    self.conflicts.insert(addr, conflict);
                }
            }
        }
    }
}
