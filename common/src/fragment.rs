//! The protocol and ports of fragmented datagrams, which only the first fragment is certain to carry.

use core::mem::size_of;

use crate::{addr::BePort, pod};

/// Key of `fragments4` and `fragments6`: what the fragments of one datagram have in common.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The identification, as it lies in the packet.
    pub id: u32,
    /// IANA protocol number, which is part of what identifies an IPv4 datagram (RFC 791, 3.2). Zero for IPv6, where it is not
    /// (RFC 8200, 4.5): a fragment header may name an extension header that only the first fragment has.
    pub protocol: u32,
}

/// Value of `fragments4` and `fragments6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Source port.
    pub src_port: BePort,
    /// Destination port.
    pub dst_port: BePort,
    /// The tick of the first fragment: an identification is used again after a while.
    pub seen: u32,
    /// IANA protocol number of the transport header.
    pub protocol: u32,
}

const _: () = {
    assert!(size_of::<FragmentKey<[u32; 1]>>() == 4 + 4 + 4 + 4);
    assert!(size_of::<FragmentKey<[u32; 4]>>() == 16 + 16 + 4 + 4);
    assert!(size_of::<FragmentPorts>() == 2 + 2 + 4 + 4);
};

pod!(FragmentKey<[u32; 1]>, FragmentKey<[u32; 4]>, FragmentPorts);
