//! Ends UDP sockets that were connected to a backend that is gone.
//!
//! Such a socket was translated once, at `connect(2)`, and would send to the old address for ever. TCP connections are left
//! alone: a backend that is removed may finish those it has.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path};

use dataplane_common::{Addr, BePort, Protocol, SocketKey, SocketOrigin, V4, V6};
use tracing::{debug, warn};

use crate::{
    maps::{
        MapError,
        observed::{self, ObservedFamily, Sockets},
        pinned::{Access, PinnedError},
    },
    netlink::sock_diag::{SockDiag, UdpSocket},
};

/// Backends that are gone, by address: number and last generation of each that had it.
///
/// An endpoint of two service ports is two backends, of which one may go and the other stay.
pub type Gone = BTreeMap<SocketAddr, Vec<(u32, u32)>>;

/// Finds and destroys sockets in the node's network namespace.
pub struct StaleSockets {
    sockets4: Sockets<V4>,
    sockets6: Sockets<V6>,
    diag: SockDiag,
    /// The kernel cannot destroy sockets; said once.
    unsupported: bool,
}

impl StaleSockets {
    /// Opens the maps under `bpffs`.
    pub fn open(bpffs: &Path) -> Result<Self, StaleSocketsError> {
        Ok(Self {
            sockets4: observed::sockets::<V4>(bpffs, Access::ReadWrite)?,
            sockets6: observed::sockets::<V6>(bpffs, Access::ReadWrite)?,
            diag: SockDiag::open().map_err(StaleSocketsError::Diag)?,
            unsupported: false,
        })
    }

    /// Destroys the sockets that were translated to one of `gone`, UDP backends all; what fails is logged.
    pub fn end(&mut self, gone: &Gone) {
        if gone.is_empty() || self.unsupported {
            return;
        }
        match self.try_end(gone) {
            Ok(0) => {}
            Ok(ended) => debug!(ended, "UDP sockets of backends that are gone"),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.unsupported = true;
                warn!(
                    "the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY): processes of this node that keep a \
                     connected UDP socket to a backend that is gone must connect again by themselves"
                );
            }
            Err(error) => warn!(%error, "UDP sockets of backends that are gone could not be ended"),
        }
    }

    fn try_end(&mut self, gone: &Gone) -> io::Result<usize> {
        let mut ended = 0;
        for socket in self.diag.connected_udp()? {
            let Some(backends) = gone.get(&socket.peer) else { continue };
            let forgotten = match socket.peer {
                SocketAddr::V4(_) => forget::<V4>(&mut self.sockets4, &socket, backends),
                SocketAddr::V6(_) => forget::<V6>(&mut self.sockets6, &socket, backends),
            };
            if !forgotten.map_err(io::Error::other)? {
                continue;
            }
            match self.diag.destroy(&socket) {
                Ok(()) => ended += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }
}

/// Removes the socket's entry when it names one of `backends`; tells whether it did.
///
/// A socket that asked for the backend itself has no entry and is none of our business.
fn forget<F: ObservedFamily>(
    sockets: &mut Sockets<F>,
    socket: &UdpSocket,
    backends: &[(u32, u32)],
) -> Result<bool, MapError>
where
    SocketKey<F::Addr>: aya::Pod,
    SocketOrigin<F::Addr>: aya::Pod,
{
    let Some(addr) = F::Addr::from_ip(socket.peer.ip()) else { return Ok(false) };
    let key = SocketKey {
        cookie: SocketKey::<F::Addr>::cookie_words(socket.cookie),
        addr,
        port: BePort::new(socket.peer.port()),
        protocol: Protocol::Udp as u8,
        pad: 0,
    };
    match sockets.get(&key)? {
        // A number may have been given to a new backend since, with a higher generation.
        Some(origin) if backends.iter().any(|(id, last)| origin.backend == *id && origin.generation <= *last) => {
            sockets.delete(&key)
        }
        _ => Ok(false),
    }
}

/// Why sockets cannot be ended.
#[derive(Debug, thiserror::Error)]
pub enum StaleSocketsError {
    /// The maps of translated sockets cannot be opened.
    #[error(transparent)]
    Map(#[from] PinnedError),
    /// There is no way to ask for sockets.
    #[error("the kernel does not list sockets (CONFIG_INET_UDP_DIAG)")]
    Diag(#[source] io::Error),
}
