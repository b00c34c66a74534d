//! A node's interfaces and routes without a node: for programs that look up the way of a packet themselves.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use aya::programs::xdp::XdpLink;

use crate::{
    harness::{Action, Harness, Hook, Outcome},
    leftovers,
    netns::Netns,
    packet::{MACS, Packet, Parsed},
};

/// A namespace with an uplink and a pod's interface, routes to local pods and to those of another node, and neighbours for
/// all of them and for a client.
#[derive(Debug)]
pub struct Router {
    netns: Netns,
    /// Index of the uplink, `172.20.0.10` and `fd20::a`.
    pub uplink: u32,
    /// Index of the pod's interface, the way to `10.244.0.0/24` and `fd44::/64`.
    pub pod: u32,
}

/// The uplink's MTU; the pod's interface has the usual one.
pub const UPLINK_MTU: u16 = 1300;

impl Router {
    /// Builds it.
    pub fn new() -> Result<Self> {
        let netns = Netns::create(&format!("{}-router", leftovers::unique_prefix()?))?;
        netns.sysctls(&["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0"])?;
        // What tests send is addressed to whichever of them it comes in by.
        let mac = MACS.1.map(|byte| format!("{byte:02x}")).join(":");
        netns.ip(&format!(
            "link add up0 mtu {UPLINK_MTU} type veth peer name far0
             link add pod0 type veth peer name eth0
             link set up0 address {mac}
             link set pod0 address {mac}
             link set far0 up
             link set up0 up
             link set eth0 up
             link set pod0 up
             addr add 172.20.0.10/24 dev up0
             addr add fd20::a/64 dev up0 nodad
             neigh add 172.20.0.11 lladdr 02:00:00:00:00:0b dev up0
             neigh add fd20::b lladdr 02:00:00:00:00:0b dev up0
             neigh add 172.20.0.200 lladdr 02:00:00:00:00:c8 dev up0
             neigh add fd20::c8 lladdr 02:00:00:00:00:c8 dev up0
             route add 10.244.1.0/24 via 172.20.0.11
             route add fd44:0:0:1::/64 via fd20::b
             route add 10.244.0.0/24 dev pod0
             route add fd44::/64 dev pod0
             neigh add 10.244.0.10 lladdr 02:00:00:00:01:0a dev pod0
             neigh add fd44::a lladdr 02:00:00:00:01:0a dev pod0
             neigh add 10.244.0.11 lladdr 02:00:00:00:01:0b dev pod0
             neigh add fd44::b lladdr 02:00:00:00:01:0b dev pod0
            "
        ))?;
        let index = |name: &'static str| netns.run(move || nix::net::if_::if_nametoindex(name));
        let (uplink, pod) = (index("up0")??, index("pod0")??);
        Ok(Self { netns, uplink, pod })
    }

    /// Runs `work` on a fresh thread among these interfaces and routes.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(work)
    }

    /// The interface that the program at `hook` belongs to.
    pub const fn interface(&self, hook: Hook) -> u32 {
        match hook {
            Hook::FromPod | Hook::ToPod => self.pod,
            Hook::FromUplink | Hook::ToUplink | Hook::XdpFromUplink | Hook::XdpGeneric => self.uplink,
        }
    }

    /// Switches XDP on at the uplink, for runs of its program there.
    pub fn attach_xdp(&self, harness: &mut Harness) -> Result<XdpLink> {
        self.netns.run(|| harness.attach_xdp(self.uplink))?
    }

    /// The network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs the program at `hook` on `frame`.
    pub fn run(&self, harness: &Harness, hook: Hook, frame: &[u8]) -> Result<Outcome> {
        self.netns.run(|| harness.run_on(self.interface(hook), hook, frame))?
    }

    /// What becomes of `frame`, which must meet with `action`.
    pub fn meets(&self, harness: &Harness, hook: Hook, frame: &[u8], action: Action) -> Result<Parsed> {
        let outcome = self.run(harness, hook, frame)?;
        ensure!(
            outcome.action == action,
            "{hook:?}: {:?}, expected {action:?}; drops {:?}",
            outcome.action,
            harness.drops()?
        );
        outcome.parsed()
    }

    /// The packet that the program at `hook` sends on by itself.
    pub fn redirects(&self, harness: &Harness, hook: Hook, packet: &Packet) -> Result<Packet> {
        self.meets(harness, hook, &packet.frame()?, Action::Redirect)?.transport()
    }

    /// The packet that the program at `hook` leaves to the stack.
    pub fn passes(&self, harness: &Harness, hook: Hook, packet: &Packet) -> Result<Packet> {
        self.meets(harness, hook, &packet.frame()?, Action::Pass)?.transport()
    }

    /// Declares the node's addresses in the maps: what takes NodePorts and what SNAT uses.
    pub fn declare(&self, harness: &mut Harness, node: IpAddr) -> Result<()> {
        harness.put_local_addr(node, dataplane_common::map::local_addr::NODE_PORT)?;
        // The pod's interface has no address: the node's primary one stands in.
        harness.put_snat_addr(dataplane_common::map::ANY_INTERFACE, node)?;
        harness.put_snat_addr(self.uplink, node)
    }
}
