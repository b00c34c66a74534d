//! Interfaces of this node that carry Service traffic.

/// The device that the IPVS mode of kube-proxy hangs ClusterIPs on: they are not the node's addresses.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// An interface that programs belong on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index, which names it for the kernel.
    pub index: u32,
    /// Its name, which names it for people and may change.
    pub name: String,
    /// What is on the other side.
    pub role: Role,
    /// Whether a piece of hardware, or what a hypervisor shows as one, is behind it.
    pub hardware: bool,
}

/// What is on the other side of an [`Interface`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// One pod.
    Pod,
    /// The world beyond this node, or a tunnel to it.
    Uplink,
}

/// How packets get out of an interface when they go around the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Passage {
    /// As the stack sends them.
    Out,
    /// The same; it is a bridge, so they come in by its ports.
    Bridge,
    /// To the other end of the veth, which is in a pod.
    Peer,
    /// Out of the bridge with this index, whose port it is: routes do not name the port.
    Port(u32),
}
