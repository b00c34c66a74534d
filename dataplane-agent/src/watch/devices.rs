//! This node's interfaces and addresses, looked at again whenever netlink says that something changed.

pub mod classify;
pub mod obstacles;
mod scan;

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::warn;

use self::{
    classify::{HostBypass, Rules, interfaces, local_addresses, passages},
    obstacles::{FindOthers, Lookout, Obstacles, RECHECK},
};
use crate::{
    model::{device::Interface, node::LocalAddresses},
    netlink::{Bell, Netlink},
};

/// A pod's interface comes with its addresses and routes: they are awaited for this long before looking.
const SETTLE: Duration = Duration::from_millis(5);

/// The least time between two looks, so that a storm of routes does not keep a core busy.
const PAUSE: Duration = Duration::from_millis(40);

/// What the interfaces are at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Those that programs belong on.
    pub interfaces: Vec<Interface>,
    /// What the node's addresses are for.
    pub addresses: LocalAddresses,
}

/// Watches the interfaces of the network namespace it was opened in.
#[derive(Debug)]
pub struct Devices {
    bell: Bell,
    netlink: Netlink,
    rules: Rules,
    node_addresses: watch::Receiver<Vec<IpAddr>>,
    /// Interfaces that a warning was given about.
    warned: BTreeSet<String>,
    /// When the last look was; none yet.
    looked: Option<Instant>,
    lookout: Lookout,
}

impl Devices {
    /// Starts watching. `node_addresses` are those of this node's Node object, as they become known; those in `rules` count
    /// for nothing. `others` looks for tc programs that are not ours.
    pub fn open(rules: Rules, node_addresses: watch::Receiver<Vec<IpAddr>>, others: FindOthers) -> io::Result<Self> {
        // The bell hangs before the first look, so that nothing falls between.
        Ok(Self {
            bell: Bell::hang()?,
            netlink: Netlink::open()?,
            rules,
            node_addresses,
            warned: BTreeSet::new(),
            looked: None,
            lookout: Lookout::new(others),
        })
    }

    /// The first time what there is; later, what there is after something changed.
    ///
    /// The view may equal the one before: an interface that was replaced by another of the same name and index looks alike.
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> io::Result<View> {
        if let Some(looked) = self.looked {
            tokio::select! {
                rung = self.bell.rung() => rung?,
                Ok(()) = self.node_addresses.changed() => {}
                () = sleep_until(looked + RECHECK), if self.rules.host_bypass == HostBypass::Auto => {}
            }
            // Forgotten until the look is over: a future dropped while waiting looks at once the next time.
            self.looked = None;
            sleep(SETTLE).await;
            sleep_until(looked + PAUSE).await;
        }
        let view = self.look()?;
        self.looked = Some(Instant::now());
        Ok(view)
    }

    fn look(&mut self) -> io::Result<View> {
        self.rules.node_addresses.clone_from(&self.node_addresses.borrow_and_update());
        let devices = scan::devices(&mut self.netlink)?;
        let (interfaces, not_ethernet) = interfaces(&devices, &self.rules);
        for name in not_ethernet.difference(&self.warned) {
            warn!(
                interface = name,
                "this interface is left alone: its packets have no Ethernet header, which the programs need; Service \
                 traffic through it is not translated"
            );
        }
        self.warned = not_ethernet;
        let mut addresses = local_addresses(&devices, &self.rules);
        let obstacles = match self.rules.host_bypass {
            HostBypass::Auto => self.lookout.look(&mut self.netlink, &devices, &self.rules),
            HostBypass::On | HostBypass::Off => Obstacles::default(),
        };
        addresses.passages = passages(&devices, &self.rules, &obstacles);
        Ok(View { interfaces, addresses })
    }
}
