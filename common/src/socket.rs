//! What a socket translated at connect time was meant to reach.

use core::mem::size_of;

use crate::{addr::BePort, pod};

/// Key of `sockets4` and `sockets6`: a socket and the backend it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketKey<A> {
    /// The socket's cookie, low word first.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub addr: A,
    /// The backend's port.
    pub port: BePort,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of `sockets4` and `sockets6`: the frontend that the process asked for, shown by `getpeername` and `recvmsg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOrigin<A> {
    /// The frontend's address.
    pub addr: A,
    /// The frontend's port.
    pub port: BePort,
    /// Zero.
    pub pad: u16,
    /// Id of the backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// Id of the service port.
    pub service: u32,
}

impl<A> SocketKey<A> {
    /// Splits a socket cookie into words, so that the key needs no eight-byte alignment.
    #[must_use]
    #[inline(always)]
    pub const fn cookie_words(cookie: u64) -> [u32; 2] {
        [cookie as u32, (cookie >> 32) as u32]
    }
}

const _: () = {
    assert!(size_of::<SocketKey<[u32; 1]>>() == 8 + 4 + 2 + 1 + 1);
    assert!(size_of::<SocketKey<[u32; 4]>>() == 8 + 16 + 2 + 1 + 1);
    assert!(size_of::<SocketOrigin<[u32; 1]>>() == 4 + 2 + 2 + 12);
    assert!(size_of::<SocketOrigin<[u32; 4]>>() == 16 + 2 + 2 + 12);
};

pod!(SocketKey<[u32; 1]>, SocketKey<[u32; 4]>, SocketOrigin<[u32; 1]>, SocketOrigin<[u32; 4]>);
