//! The places of an interface's life where a program runs, and the programs of cgroups.

use std::fmt;

use aya::programs::tc::TcAttachType;

use crate::model::device::Role;

/// A hook on an interface; its program has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Ingress of a pod's interface.
    FromPod,
    /// Egress of a pod's interface.
    ToPod,
    /// Ingress of an uplink.
    FromUplink,
    /// Egress of an uplink.
    ToUplink,
    /// XDP on an uplink, before its ingress.
    XdpFromUplink,
}

impl Hook {
    /// The hooks of tc.
    pub const TC: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink];

    /// The tc hooks of an interface, the one for replies first: a connection is never translated one way only.
    #[must_use]
    pub const fn of(role: Role) -> [Self; 2] {
        match role {
            Role::Pod => [Self::ToPod, Self::FromPod],
            Role::Uplink => [Self::ToUplink, Self::FromUplink],
        }
    }

    /// The name of the hook and of its program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::XdpFromUplink => "xdp_from_uplink",
        }
    }

    /// The tc hook called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::TC.into_iter().find(|hook| hook.name() == name)
    }

    /// The direction of the traffic that the hook sees, as the kernel puts it.
    #[must_use]
    pub const fn direction(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromUplink | Self::XdpFromUplink => TcAttachType::Ingress,
            Self::ToPod | Self::ToUplink => TcAttachType::Egress,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names of the cgroup programs, those that undo a translation before those that do one.
pub const CGROUP_PROGRAMS: [&str; 8] = [
    "sock_getpeer4",
    "sock_getpeer6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
];
