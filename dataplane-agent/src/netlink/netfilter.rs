//! Whether netfilter has rules for what the stack forwards: packets that go around the stack would miss them.

use std::{fs, io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::exchange::{Exchange, attributes, field};

// `linux/netfilter/nf_tables.h`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const HOOK_NUMBER: u16 = 1;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Families whose chains see packets between pods: `inet`, IPv4, `bridge`, IPv6.
const FAMILIES: [u8; 4] = [1, 2, 7, 10];
/// Its chains are at interfaces: on the way in behind the programs of tc, and on the way out of what is handed to a peer not at all.
const NETDEV: u8 = 5;

// Hooks that forwarded packets pass (`linux/netfilter.h`).
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;

/// Where netfilter has rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetfilterRules {
    /// At PREROUTING or FORWARD: they may drop or change what goes from pod to pod.
    pub before: bool,
    /// At POSTROUTING: they may change the source of what leaves the node.
    pub after: bool,
}

impl NetfilterRules {
    /// Looks at the tables of nftables, those of iptables' nft backend among them, and of iptables' legacy backend.
    pub fn read() -> io::Result<Self> {
        let mut rules = Self::default();
        match Exchange::open(NETLINK_NETFILTER) {
            Ok(mut exchange) => rules.add_nftables(&mut exchange)?,
            // A kernel without it has no such rules.
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {}
            Err(error) => return Err(error),
        }
        for (names, family, level) in [
            ("/proc/net/ip_tables_names", AddressFamily::Inet, libc::IPPROTO_IP),
            ("/proc/net/ip6_tables_names", AddressFamily::Inet6, libc::IPPROTO_IPV6),
        ] {
            // The file is there when the kernel has the backend, and names the tables that anyone has used.
            for table in fs::read_to_string(names).unwrap_or_default().lines() {
                if legacy_has_rules(family, level, table)? {
                    // Which of a table's chains has them is not told without reading all of them.
                    rules.after |= table == "nat";
                    rules.before |= table != "nat";
                }
            }
        }
        Ok(rules)
    }

    /// What follows for packets, in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self { before: true, .. } => {
                "off, because netfilter has rules for forwarded packets; --host-bypass=on ignores them"
            }
            Self { after: true, .. } => {
                "between local pods only, because netfilter has rules at POSTROUTING; --host-bypass=on ignores them"
            }
            Self { .. } => "on, since netfilter has no rules for forwarded packets",
        }
    }

    fn add_nftables(&mut self, exchange: &mut Exchange) -> io::Result<()> {
        let request = exchange.request(GET_CHAIN, libc::NLM_F_DUMP, &[0; NFGENMSG], |answer| {
            if let Some(chain) = BaseChain::parse(answer) {
                self.add(&chain);
            }
        });
        match request {
            // nf_tables is not in this kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            request => request,
        }
    }

    fn add(&mut self, chain: &BaseChain) {
        if chain.rules == 0 && !chain.drops {
            return;
        }
        let acts = FAMILIES.contains(&chain.family);
        self.before |= chain.family == NETDEV || acts && matches!(chain.hook, PREROUTING | FORWARD);
        self.after |= acts && chain.hook == POSTROUTING;
    }
}

/// A chain of nftables that netfilter calls.
#[derive(Debug, PartialEq, Eq)]
struct BaseChain {
    family: u8,
    hook: u32,
    rules: u32,
    drops: bool,
}

impl BaseChain {
    /// Reads a chain; `None` for one that only other chains call.
    fn parse(answer: &[u8]) -> Option<Self> {
        let family = *answer.first()?;
        let number = |value: &[u8]| field(value, 0).map(u32::from_be_bytes);
        let mut chain = Self { family, hook: 0, rules: 0, drops: false };
        let mut hooked = false;
        for (kind, value) in attributes(answer.get(NFGENMSG..)?) {
            match kind {
                CHAIN_HOOK => {
                    chain.hook =
                        attributes(value).find(|(kind, _)| *kind == HOOK_NUMBER).and_then(|(_, v)| number(v))?;
                    hooked = true;
                }
                CHAIN_POLICY => chain.drops = number(value)? == 0,
                // Nothing jumps to a base chain, so its users are its rules.
                CHAIN_USE => chain.rules = number(value)?,
                _ => {}
            }
        }
        hooked.then_some(chain)
    }
}

/// `struct ipt_getinfo` and `struct ip6t_getinfo`.
#[repr(C)]
struct TableInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// Whether a table of iptables' legacy backend has any rule beside the policies of its chains.
fn legacy_has_rules(family: AddressFamily, level: libc::c_int, table: &str) -> io::Result<bool> {
    /// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
    const GET_INFO: libc::c_int = 64;
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let mut info =
        TableInfo { name: [0; 32], valid_hooks: 0, hook_entry: [0; 5], underflow: [0; 5], num_entries: 0, size: 0 };
    let Some(name) = info.name.get_mut(..table.len()) else { return Ok(false) };
    name.copy_from_slice(table.as_bytes());
    let mut length = size_of::<TableInfo>() as libc::socklen_t;
    // SAFETY: the structure is the kernel's, and its length is passed.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // One entry per chain holds its policy, and one ends the table.
    Ok(info.num_entries > info.valid_hooks.count_ones() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8, hook: u32, rules: u32, drops: bool) -> BaseChain {
        BaseChain { family, hook, rules, drops }
    }

    #[track_caller]
    fn check(chains: &[BaseChain], before: bool, after: bool) {
        let mut rules = NetfilterRules::default();
        chains.iter().for_each(|chain| rules.add(chain));
        assert_eq!(rules, NetfilterRules { before, after });
    }

    #[test]
    fn only_chains_that_forwarded_packets_pass_count_and_only_with_rules_or_a_policy() {
        check(&[], false, false);
        check(&[chain(2, FORWARD, 0, false), chain(2, 1, 7, true), chain(2, 3, 7, false)], false, false);
        check(&[chain(2, FORWARD, 1, false)], true, false);
        check(&[chain(10, PREROUTING, 0, true)], true, false);
        check(&[chain(1, POSTROUTING, 2, false)], false, true);
        // ARP chains see other packets.
        check(&[chain(3, FORWARD, 1, false), chain(5, 0, 0, false)], false, false);
        check(&[chain(5, 0, 1, false)], true, false);
    }

    #[test]
    fn a_chain_is_read_from_its_attributes() {
        let number = |kind: u16, value: u32| {
            let mut bytes = 8_u16.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_be_bytes());
            bytes
        };
        let nested = |kind: u16, inner: &[u8]| {
            let mut bytes = (4 + inner.len() as u16).to_ne_bytes().to_vec();
            bytes.extend((kind | 0x8000).to_ne_bytes());
            bytes.extend(inner);
            bytes
        };
        let mut answer = vec![2, 0, 0, 0];
        answer.extend(number(CHAIN_USE, 3));
        assert_eq!(BaseChain::parse(&answer), None);
        answer.extend(nested(CHAIN_HOOK, &number(HOOK_NUMBER, FORWARD)));
        answer.extend(number(CHAIN_POLICY, 1));
        assert_eq!(BaseChain::parse(&answer), Some(chain(2, FORWARD, 3, false)));
    }
}
