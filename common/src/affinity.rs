//! Which backend a client was sent to last, for services with `ClientIP` affinity.

use core::mem::size_of;

use crate::pod;

/// Key of `affinity4` and `affinity6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey<A> {
    /// The client's address; zero for the node's own processes, which share one memory.
    pub client: A,
    /// The service port's id.
    pub service: u32,
}

/// Value of `affinity4` and `affinity6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Id of the backend.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// The tick of the last new connection.
    pub last_used: u32,
}

const _: () = {
    assert!(size_of::<AffinityKey<[u32; 1]>>() == 4 + 4);
    assert!(size_of::<AffinityKey<[u32; 4]>>() == 16 + 4);
    assert!(size_of::<Affinity>() == 3 * 4);
};

pod!(AffinityKey<[u32; 1]>, AffinityKey<[u32; 4]>, Affinity);
