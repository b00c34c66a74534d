//! The contract between kernel and user space: every map key and value, every constant that both sides read.
//!
//! Rules of this crate:
//!
//! * It imports `core` only, so that the BPF programs can use it; the feature `user` adds [`aya::Pod`] for user space.
//! * Every type stored in a map is `repr(C)`, has no implicit padding and consists of integers, so that any bytes are a
//!   valid value. Fields that hold an enumeration are decoded with a `from_*` function that may say `None`.
//! * Byte order is part of a type: [`BePort`] and [`Addr`] are in network order, plain integers in host order.
//! * A change to any of these layouts needs a new [`map::LAYOUT_VERSION`].

#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

pub mod addr;
pub mod affinity;
pub mod announcement;
pub mod clock;
pub mod config;
pub mod conntrack;
pub mod drop_reason;
pub mod flow_state;
pub mod fragment;
pub mod map;
pub mod protocol;
pub mod service;
pub mod socket;
pub mod way;

pub use addr::{Addr, BePort, Family, V4, V6};
pub use affinity::{Affinity, AffinityKey};
pub use announcement::Announcement;
pub use clock::Ticks;
pub use config::NodeConfig;
pub use conntrack::{Direction, Flow, FlowKey, Next, Side};
pub use drop_reason::DropReason;
pub use flow_state::{FlowState, TcpFlags};
pub use fragment::{FragmentKey, FragmentPorts};
pub use protocol::Protocol;
pub use service::{
    Backend, Frontend, FrontendKey, FrontendKind, NO_SERVICE, Scope, ServiceName, SlotRange, SourceRange,
};
pub use socket::{SocketKey, SocketOrigin};
pub use way::{Device, Exit, PairWay, Way};

/// Implements `aya::Pod` for map types, in user space only.
macro_rules! pod {
    ($($ty:ty),* $(,)?) => {$(
        #[cfg(feature = "user")]
        // SAFETY: the type is `repr(C)`, made of integers without implicit padding (asserted beside its definition), so
        // every bit pattern is valid and all of its bytes are initialised.
        unsafe impl aya::Pod for $ty {}
    )*};
}
pub(crate) use pod;
