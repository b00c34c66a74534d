//! Interfaces of this node that carry Service traffic.

/// An interface that programs belong on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index, which names it for the kernel.
    pub index: u32,
    /// Its name, which names it for people and may change.
    pub name: String,
    /// What is on the other side.
    pub role: Role,
}

/// What is on the other side of an [`Interface`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// One pod.
    Pod,
    /// The world beyond this node, or a tunnel to it.
    Uplink,
}
