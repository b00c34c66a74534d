//! This node's interfaces and addresses, looked at again whenever netlink says that something changed.

pub mod classify;
mod scan;

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use self::classify::{HostBypass, Rules, interfaces, local_addresses, passages};
use crate::{
    model::{device::Interface, node::LocalAddresses},
    netlink::{Bell, Netlink, netfilter::NetfilterRules},
};

/// A pod's interface comes with its addresses and routes: they are awaited for this long before looking.
const SETTLE: Duration = Duration::from_millis(5);

/// The least time between two looks, so that a storm of routes does not keep a core busy.
const PAUSE: Duration = Duration::from_millis(40);

/// Rules of netfilter come and go without a bell.
const RECHECK: Duration = Duration::from_secs(10);

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
    /// What netfilter did at the last look.
    netfilter: Option<NetfilterRules>,
}

impl Devices {
    /// Starts watching. `node_addresses` are those of this node's Node object, as they become known; those in `rules` count
    /// for nothing.
    pub fn open(rules: Rules, node_addresses: watch::Receiver<Vec<IpAddr>>) -> io::Result<Self> {
        // The bell hangs before the first look, so that nothing falls between.
        Ok(Self {
            bell: Bell::hang()?,
            netlink: Netlink::open()?,
            rules,
            node_addresses,
            warned: BTreeSet::new(),
            looked: None,
            netfilter: None,
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
        let netfilter = self.netfilter_rules();
        addresses.passages = passages(&devices, &self.rules, netfilter);
        Ok(View { interfaces, addresses })
    }

    /// Whether rules of netfilter see what the stack forwards; whoever cannot tell assumes so.
    fn netfilter_rules(&mut self) -> NetfilterRules {
        if self.rules.host_bypass != HostBypass::Auto {
            return NetfilterRules::default();
        }
        let rules = NetfilterRules::read().unwrap_or_else(|error| {
            debug!(%error, "the rules of netfilter cannot be read: packets go through the stack");
            NetfilterRules { before: true, after: true }
        });
        if self.netfilter != Some(rules) {
            self.netfilter = Some(rules);
            info!("host bypass: {}", rules.meaning());
        }
        rules
    }
}
