//! What else has a say in forwarded packets, and would not be asked about those that go around the stack.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info};

use super::classify::{Class, Device, Rules, classify};
use crate::{
    model::device::Role,
    netlink::{Netlink, filters::Direction, ipsec, netfilter::NetfilterRules},
};

/// Obstacles come and go without a bell.
pub(super) const RECHECK: Duration = Duration::from_secs(10);

/// What stands in the way of going around the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Rules of netfilter.
    pub netfilter: NetfilterRules,
    /// IPsec policies, which decide what is encrypted.
    pub ipsec: bool,
    /// Indexes of interfaces where programs or filters of others see packets.
    pub programs: BTreeSet<u32>,
}

impl Obstacles {
    /// What follows for packets, in words.
    fn meaning(&self) -> String {
        if self.ipsec {
            return "off, because IPsec policies may apply to forwarded packets; --host-bypass=on ignores them".into();
        }
        let all = self.netfilter.meaning();
        if self.programs.is_empty() { all.into() } else { format!("{all}; not where tc programs of others run") }
    }
}

/// Tells whether programs or filters of others see packets at a hook of the interface with this index and name.
pub type FindOthers = fn(&mut Netlink, u32, &str, Direction) -> io::Result<bool>;

/// Looks for obstacles.
#[derive(Debug)]
pub(super) struct Lookout {
    others: FindOthers,
    /// Whether an interface has programs of others, by index, as seen since `begun`.
    seen: BTreeMap<u32, bool>,
    begun: Option<Instant>,
    said: Option<String>,
}

impl Lookout {
    pub(super) const fn new(others: FindOthers) -> Self {
        Self { others, seen: BTreeMap::new(), begun: None, said: None }
    }

    /// The obstacles now; whoever cannot tell assumes that there are some.
    pub(super) fn look(&mut self, netlink: &mut Netlink, devices: &[Device], rules: &Rules) -> Obstacles {
        let netfilter = NetfilterRules::read().unwrap_or_else(|error| {
            debug!(%error, "the rules of netfilter cannot be read: packets go through the stack");
            NetfilterRules { before: true, after: true }
        });
        let ipsec = ipsec::has_policies().unwrap_or_else(|error| {
            debug!(%error, "the policies of IPsec cannot be read: packets go through the stack");
            true
        });
        let obstacles = Obstacles { netfilter, ipsec, programs: self.programs(netlink, devices, rules) };
        let meaning = obstacles.meaning();
        if self.said.as_ref() != Some(&meaning) {
            info!("host bypass: {meaning}");
            self.said = Some(meaning);
        }
        obstacles
    }

    /// The interfaces where programs of others see packets that ours would redirect before, or never let get there.
    fn programs(&mut self, netlink: &mut Netlink, devices: &[Device], rules: &Rules) -> BTreeSet<u32> {
        if self.begun.is_none_or(|begun| begun.elapsed() >= RECHECK) {
            self.seen.clear();
            self.begun = Some(Instant::now());
        }
        self.seen.retain(|index, _| devices.iter().any(|device| device.index == *index));
        for device in devices {
            let Class::Carries(role) = classify(device, rules) else { continue };
            // What leaves by an uplink passes its programs in any case.
            let directions = if role == Role::Pod { &Direction::ALL[..] } else { &[Direction::Ingress] };
            self.seen.entry(device.index).or_insert_with(|| {
                let mut found = directions.iter().map(|&direction| (self.others)(netlink, device.index, &device.name, direction));
                found.any(|found| {
                    found.unwrap_or_else(|error| {
                        debug!(%error, interface = device.name, "its programs cannot be listed: packets go through the stack");
                        true
                    })
                })
            });
        }
        self.seen.iter().filter(|(_, others)| **others).map(|(index, _)| *index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_names_what_is_in_the_way() {
        let said = |obstacles: Obstacles| obstacles.meaning();
        assert_eq!(said(Obstacles::default()), "on, since netfilter has no rules for forwarded packets");
        assert!(said(Obstacles { ipsec: true, ..Obstacles::default() }).starts_with("off, because IPsec"));
        assert!(
            said(Obstacles { programs: [3].into(), ..Obstacles::default() })
                .ends_with("; not where tc programs of others run")
        );
    }
}
