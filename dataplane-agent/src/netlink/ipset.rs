//! IP sets of a network namespace: their names, and destroying one.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::exchange::{Exchange, attributes};

// `linux/netfilter/ipset/ip_set.h`, `linux/netfilter/nfnetlink.h`.
const SUBSYSTEM: u16 = 6 << 8;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const FLAGS: u16 = 6;
/// The names alone, without what the sets hold.
const LIST_NAMES: u32 = 1 << 1;
/// The oldest version of the protocol that kernels in use understand; newer ones only add to it.
const VERSION: u8 = 6;
/// `IPSET_ERR_BUSY`: a rule or another set refers to it.
const BUSY: i32 = 4100;
/// `struct nfgenmsg` of a request: family, version, resource.
const NFGENMSG: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

/// A socket for requests, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Ipsets {
    exchange: Exchange,
}

impl Ipsets {
    /// Opens a socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { exchange: Exchange::open(NETLINK_NETFILTER)? })
    }

    /// The names of all sets; none where the kernel has no sets.
    pub fn names(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let payload = message(&[(FLAGS, &LIST_NAMES.to_be_bytes())]);
        let listed = self.exchange.request(LIST, libc::NLM_F_DUMP, &payload, |answer| names.extend(name(answer)));
        match listed {
            // The subsystem is not in this kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
            listed => listed.map(|()| names),
        }
    }

    /// Destroys the set `name` with its entries; false when something refers to it.
    pub fn destroy(&mut self, name: &str) -> io::Result<bool> {
        let name = [name.as_bytes(), &[0]].concat();
        match self.exchange.request(DESTROY, libc::NLM_F_ACK, &message(&[(SET_NAME, &name)]), |_| {}) {
            Err(error) if error.raw_os_error() == Some(BUSY) => Ok(false),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
            done => done.map(|()| true),
        }
    }
}

/// A request with `attributes` after the version of the protocol.
fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = NFGENMSG.to_vec();
    for (kind, value) in std::iter::once(&(PROTOCOL, &[VERSION][..])).chain(attributes) {
        message.extend((4 + value.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    message
}

/// The name in a message about a set.
fn name(answer: &[u8]) -> Option<String> {
    let (_, value) = attributes(answer.get(NFGENMSG.len()..)?).find(|(kind, _)| *kind == SET_NAME)?;
    String::from_utf8(value.strip_suffix(&[0])?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_from_the_message_that_would_ask_for_it() {
        let asked = message(&[(FLAGS, &[0; 4]), (SET_NAME, b"KUBE-LOOP-BACK\0")]);
        assert_eq!(asked.len(), 4 + 8 + 8 + 4 + 16);
        assert_eq!(name(&asked).as_deref(), Some("KUBE-LOOP-BACK"));
        assert_eq!(name(&message(&[])), None);
    }
}
